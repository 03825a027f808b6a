# step rounds while step is below 1000.
.name rounds_under_a_guard
.hook on_forward
CTXI i0, step
ICONST i1, 1000
ILT i2, i0, i1
IF i2
  FOR i3, i0
  ENDFOR
ENDIF
EXIT
