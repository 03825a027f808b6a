# The index is used where the guard says no.
# expect: E8-VERIFY:bounds pc=6 line=11
.name row_guard_on_the_wrong_side
.hook on_forward
VARG v0, x
DIM i0, v0, 0
ICONST i1, 3
ILT i2, i1, i0
IF i2
ELSE
  ROW v1, v0, i1
ENDIF
EXIT
