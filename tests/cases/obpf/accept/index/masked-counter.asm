# i & 3 is not above i.
.name masked_counter
.hook on_forward
.map m array 4
VARG v0, x
DIM i0, v0, 0
ICONST i2, 3
FOR i1, i0
  IAND i3, i1, i2
  ROW v1, v0, i3
  MINC i3, @m
ENDFOR
EXIT
