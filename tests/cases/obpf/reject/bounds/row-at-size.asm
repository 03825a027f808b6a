# The row after the last one.
# expect: E8-VERIFY:bounds pc=2 line=7
.name row_at_size
.hook on_forward
VARG v0, x
DIM i0, v0, 0
ROW v1, v0, i0
EXIT
