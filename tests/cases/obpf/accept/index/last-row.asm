# The last row, if there is one.
.name last_row
.hook on_forward
VARG v0, x
DIM i0, v0, 0
IF i0
  ICONST i1, 1
  ISUB i2, i0, i1
  ROW v1, v0, i2
ENDIF
EXIT
