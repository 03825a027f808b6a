# An expensive helper for each row.
# expect: E8-VERIFY:cost pc=3 line=8
.name helper_in_a_loop
.hook on_kd_step
VARG v0, hs
VARG v1, ht
DIM i0, v0, 0
FOR i1, i0
  CALL f0, v0, v1, rkd_angle
ENDFOR
EXIT
