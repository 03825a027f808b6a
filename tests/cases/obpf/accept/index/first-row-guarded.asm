# The first row, if there is one.
.name first_row_guarded
.hook on_forward
VARG v0, x
DIM i0, v0, 0
IF i0
  ICONST i1, 0
  ROW v1, v0, i1
ENDIF
EXIT
