# The larger of a row number and the step.
# expect: E8-VERIFY:bounds pc=5 line=10
.name larger_of_two
.hook on_forward
VARG v0, x
DIM i0, v0, 0
CTXI i2, step
FOR i1, i0
  IMAX i3, i1, i2
  ROW v1, v0, i3
ENDFOR
EXIT
