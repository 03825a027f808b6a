# A view with one axis too few.
# dims: rows=8 width=4
# run: x=4
# observe: refused rank 1 2
.name another_rank
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
