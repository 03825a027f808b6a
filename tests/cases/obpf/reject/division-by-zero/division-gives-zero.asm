# a // 0 is 0: no row of an empty view.
# expect: E8-VERIFY:bounds pc=5 line=10
.name division_gives_zero
.hook on_forward
VARG v0, x
DIM i0, v0, 0
ICONST i1, 7
ICONST i2, 0
IDIV i3, i1, i2
ROW v1, v0, i3
EXIT
