# A guard for row 3 is one for row 2.
.name row_two_under_a_guard_for_three
.hook on_forward
VARG v0, x
DIM i0, v0, 0
ICONST i1, 3
ILT i2, i1, i0
IF i2
  ICONST i3, 2
  ROW v1, v0, i3
ENDIF
EXIT
