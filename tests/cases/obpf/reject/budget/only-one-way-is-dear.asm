# The dearer way of an IF counts.
# expect: E8-VERIFY:cost pc=4 line=9
.name only_one_way_is_dear
.hook on_forward
VARG v0, x
CTXI i9, step
IF i9
  DIM i0, v0, 0
  FOR i1, i0
    MEAN f0, v0
  ENDFOR
ELSE
ENDIF
EXIT
