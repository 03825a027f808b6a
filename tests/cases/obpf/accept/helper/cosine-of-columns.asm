# cosine of two columns of one matrix.
.name cosine_of_columns
.hook on_grad
VARG v0, grad
VARG v1, param
DIM i0, v0, 1
FOR i1, i0
  COL v2, v0, i1
  COL v3, v1, i1
  CALL f0, v2, v3, cosine
ENDFOR
EXIT
