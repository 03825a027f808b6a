# The last row of a view that may be empty.
# expect: E8-VERIFY:bounds pc=4 line=9
.name size_minus_one
.hook on_forward
VARG v0, x
DIM i0, v0, 0
ICONST i1, 1
ISUB i2, i0, i1
ROW v1, v0, i2
EXIT
