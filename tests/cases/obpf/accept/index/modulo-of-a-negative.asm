# -7 % n is in range as well.
.name modulo_of_a_negative
.hook on_forward
VARG v0, x
DIM i0, v0, 0
IF i0
  ICONST i1, -7
  IMOD i2, i1, i0
  ROW v1, v0, i2
ENDIF
EXIT
