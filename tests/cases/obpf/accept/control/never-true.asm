# A condition that is never true.
.name never_true
.hook on_forward
.map m array 1
VARG v0, x
DIM i0, v0, 0
ICONST i1, 0
ILT i2, i0, i1
IF i2
  MINC i1, @m
ENDIF
EXIT
