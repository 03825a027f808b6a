# A row number on one way, the step on the other.
# expect: E8-VERIFY:bounds pc=9 line=14
.name row_number_or_step
.hook on_forward
VARG v0, x
DIM i0, v0, 0
CTXI i2, step
FOR i1, i0
  IF i2
    IMOV i3, i1
  ELSE
    CTXI i3, firing
  ENDIF
  ROW v1, v0, i3
ENDFOR
EXIT
