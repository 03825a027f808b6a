# A wider view: the cost was proved for 4 columns.
# dims: rows=8 width=4
# run: x=8x5
# observe: refused width 5 4
.name wider
.hook on_forward
.map m array 8
VARG v0, x
DIM i0, v0, 0
FCONST f1, 1.0
FOR i1, i0
  ROW v1, v0, i1
  SUM f0, v1
  MADD i1, f0, @m
ENDFOR
EXIT
