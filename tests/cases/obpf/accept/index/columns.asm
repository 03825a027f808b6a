# A loop over the columns.
.name columns
.hook on_forward
VARG v0, x
DIM i0, v0, 1
FOR i1, i0
  COL v1, v0, i1
  ABSMAX f0, v1
ENDFOR
EXIT
