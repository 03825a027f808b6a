# Columns of hs counted by those of ht.
# expect: E8-VERIFY:bounds pc=4 line=9
.name teacher_width
.hook on_kd_step
VARG v0, hs
VARG v1, ht
DIM i0, v1, 1
FOR i1, i0
  COL v2, v0, i1
ENDFOR
EXIT
