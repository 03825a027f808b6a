# The second view has two axes.
# expect: E8-VERIFY:helper-shape pc=4 line=9
.name cosine_of_a_row_and_a_matrix
.hook on_forward
VARG v0, x
DIM i0, v0, 0
FOR i1, i0
  ROW v1, v0, i1
  CALL f0, v1, v0, cosine
ENDFOR
EXIT
