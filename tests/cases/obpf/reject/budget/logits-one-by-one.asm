# Every logit by itself, twice.
# expect: E8-VERIFY:cost pc=3 line=8
.name logits_one_by_one
.hook on_kd_step
VARG v0, student
DIM i0, v0, 0
DIM i1, v0, 1
FOR i2, i0
  ROW v1, v0, i2
  FOR i3, i1
    ENTROPYL f0, v1
  ENDFOR
ENDFOR
EXIT
