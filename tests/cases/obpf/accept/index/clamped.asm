# min(max(i, 0), n - 1), where there are rows.
.name clamped
.hook on_forward
VARG v0, x
DIM i0, v0, 0
IF i0
  CTXI i1, step
  ICONST i2, 1
  ISUB i3, i0, i2
  IMIN i1, i1, i3
  ICONST i4, 0
  IMAX i1, i1, i4
  ROW v1, v0, i1
ENDIF
EXIT
