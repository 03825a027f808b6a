# A row each firing, three rows, a ring of five.
# run: x=3x2
# times: 4
# observe: drops r=7
.name row_by_row
.hook on_forward
.map r ring 5
VARG v0, x
DIM i0, v0, 0
FOR i1, i0
  ROW v1, v0, i1
  SUM f0, v1
  EMIT i1, f0, @r
ENDFOR
EXIT
