# rkd_distance takes matrices.
# expect: E8-VERIFY:helper-shape pc=4 line=9
.name rkd_of_rows
.hook on_kd_step
VARG v0, hs
DIM i0, v0, 0
FOR i1, i0
  ROW v1, v0, i1
  CALL f0, v1, v1, rkd_distance
ENDFOR
EXIT
