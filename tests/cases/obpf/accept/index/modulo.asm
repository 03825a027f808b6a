# step % n, where there are rows.
.name modulo
.hook on_forward
VARG v0, x
DIM i0, v0, 0
IF i0
  CTXI i1, step
  IMOD i2, i1, i0
  ROW v1, v0, i2
ENDIF
EXIT
