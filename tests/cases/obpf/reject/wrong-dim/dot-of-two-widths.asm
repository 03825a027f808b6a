# A dot product of a student's and a teacher's hidden state.
# expect: E8-VERIFY:shape pc=6 line=11
.name dot_of_two_widths
.hook on_kd_step
VARG v0, hs
VARG v1, ht
DIM i0, v0, 0
FOR i1, i0
  ROW v2, v0, i1
  ROW v3, v1, i1
  DOT f0, v2, v3
ENDFOR
EXIT
