# -i is below every size, and below 0.
# expect: E8-VERIFY:bounds pc=4 line=9
.name counter_negated
.hook on_forward
VARG v0, x
DIM i0, v0, 0
FOR i1, i0
  INEG i2, i1
  ROW v1, v0, i2
ENDFOR
EXIT
