# A count used as a key while it is below the size.
.name guarded_counter
.hook on_forward
.map m array 8
VARG v0, x
DIM i0, v0, 0
ICONST i2, 0
ICONST i3, 1
ICONST i4, 8
FOR i1, i0
  ILT i5, i2, i4
  IF i5
    MINC i2, @m
    IADD i2, i2, i3
  ENDIF
ENDFOR
EXIT
