# The row before the first.
# expect: E8-VERIFY:bounds pc=5 line=10
.name counter_minus_one
.hook on_forward
VARG v0, x
DIM i0, v0, 0
ICONST i1, 1
FOR i2, i0
  ISUB i3, i2, i1
  ROW v1, v0, i3
ENDFOR
EXIT
