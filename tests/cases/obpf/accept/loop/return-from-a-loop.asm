# A return from inside a loop.
.name return_from_a_loop
.hook on_forward
.map m hash 4
VARG v0, x
DIM i0, v0, 0
FOR i1, i0
  ROW v1, v0, i1
  COUNTNF i2, v1
  IF i2
    MINC i1, @m
    EXIT
  ENDIF
ENDFOR
EXIT
