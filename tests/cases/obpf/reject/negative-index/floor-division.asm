# -1 // 2 is -1, not 0.
# expect: E8-VERIFY:bounds pc=6 line=11
.name floor_division
.hook on_forward
VARG v0, x
DIM i0, v0, 0
ICONST i1, -1
ICONST i2, 2
IDIV i3, i1, i2
IF i0
  ROW v1, v0, i3
ENDIF
EXIT
