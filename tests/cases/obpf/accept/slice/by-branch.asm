# A slice on one way and another on the other.
.name by_branch
.hook on_forward
VARG v0, x
CTXI i9, step
ICONST i0, 0
ICONST i1, 4
ICONST i2, 8
IF i9
  SLICE v1, v0, i0, i1
ELSE
  SLICE v1, v0, i1, i2
ENDIF
DIM i3, v1, 0
FOR i4, i3
  ROW v2, v1, i4
ENDFOR
EXIT
