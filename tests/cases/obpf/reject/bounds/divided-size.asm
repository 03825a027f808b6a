# Rounding up half of the size is beyond it for a size of 0.
# expect: E8-VERIFY:bounds pc=4 line=9
.name divided_size
.hook on_forward
VARG v0, x
DIM i0, v0, 0
ICONST i1, 2
IDIV i2, i0, i1
ROW v1, v0, i2
EXIT
