# A row and a column of a matrix.
# expect: E8-VERIFY:shape pc=7 line=12
.name row_against_column
.hook on_grad
VARG v0, grad
DIM i0, v0, 0
DIM i1, v0, 1
FOR i2, i0
  ROW v1, v0, i2
  FOR i3, i1
    COL v2, v0, i3
    DOT f0, v1, v2
  ENDFOR
ENDFOR
EXIT
