# A loop over the rows.
.name rows
.hook on_forward
VARG v0, x
DIM i0, v0, 0
FOR i1, i0
  ROW v1, v0, i1
  SUMSQ f0, v1
ENDFOR
EXIT
