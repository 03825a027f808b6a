# Not 0 and below 8.
.name guard_unequal
.hook on_forward
.map m array 8
CTXI i0, step
ICONST i1, 8
ILT i2, i0, i1
IAND i3, i2, i0
IF i2
  MINC i0, @m
ENDIF
EXIT
