# KL of a row against the whole matrix.
# expect: E8-VERIFY:shape pc=5 line=10
.name kl_of_a_row_and_a_matrix
.hook on_kd_step
VARG v0, student
VARG v1, teacher
DIM i0, v0, 0
FOR i1, i0
  ROW v2, v0, i1
  KL f0, v2, v1
ENDFOR
EXIT
