# An index equal to one that is in range.
.name equal_index
.hook on_forward
VARG v0, x
DIM i0, v0, 0
CTXI i1, step
FOR i2, i0
  IEQ i3, i1, i2
  IF i3
    ROW v1, v0, i1
  ENDIF
ENDFOR
EXIT
