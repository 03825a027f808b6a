# A flag that a loop raises.
.name flag
.hook on_forward
.map m array 2
VARG v0, x
DIM i0, v0, 0
ICONST i2, 0
FCONST f1, 100.0
FOR i1, i0
  ROW v1, v0, i1
  ABSMAX f0, v1
  FLT i3, f1, f0
  IF i3
    ICONST i2, 1
  ENDIF
ENDFOR
MINC i2, @m
EXIT
