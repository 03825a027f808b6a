# A guard with <= where < is needed.
# expect: E8-VERIFY:bounds pc=5 line=10
.name row_below_or_equal
.hook on_forward
VARG v0, x
DIM i0, v0, 0
ICONST i1, 3
ILE i2, i1, i0
IF i2
  ROW v1, v0, i1
ENDIF
EXIT
