# A guard against the size.
.name guard
.hook on_forward
.map m array 8
CTXI i0, step
ICONST i1, 8
ILT i2, i0, i1
IF i2
  MINC i0, @m
ENDIF
EXIT
