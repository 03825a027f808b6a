# a % b has the sign of b.
# expect: E8-VERIFY:bounds pc=6 line=11
.name modulo_of_a_negative_divisor
.hook on_forward
VARG v0, x
DIM i0, v0, 0
CTXI i1, step
INEG i2, i0
IMOD i3, i1, i2
IF i0
  ROW v1, v0, i3
ENDIF
EXIT
