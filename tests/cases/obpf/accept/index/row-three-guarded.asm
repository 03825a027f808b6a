# Row 3, if there are as many.
.name row_three_guarded
.hook on_forward
VARG v0, x
DIM i0, v0, 0
ICONST i1, 3
ILT i2, i1, i0
IF i2
  ROW v1, v0, i1
ENDIF
EXIT
