# A loop on one way only.
.name loop_in_a_branch
.hook on_forward
VARG v0, x
CTXI i5, step
DIM i0, v0, 0
IF i5
  FOR i1, i0
    ROW v1, v0, i1
  ENDFOR
ELSE
  SUM f0, v0
ENDIF
EXIT
