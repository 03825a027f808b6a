# A condition that is always true.
.name always_true
.hook on_forward
.map m array 1
VARG v0, x
DIM i0, v0, 0
ICONST i1, 0
ILE i2, i1, i0
IF i2
  MINC i1, @m
ENDIF
EXIT
