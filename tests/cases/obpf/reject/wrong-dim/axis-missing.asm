# The third axis of a matrix.
# expect: E8-VERIFY:axis pc=1 line=6
.name axis_missing
.hook on_forward
VARG v0, x
DIM i0, v0, 2
EXIT
