# Rows of hs counted by those of the logits.
# expect: E8-VERIFY:bounds pc=4 line=9
.name other_views_rows
.hook on_kd_step
VARG v0, student
VARG v1, hs
DIM i0, v0, 0
FOR i1, i0
  ROW v2, v1, i1
ENDFOR
EXIT
