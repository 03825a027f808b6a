# i // 2 is not above i.
.name halved_counter
.hook on_forward
VARG v0, x
DIM i0, v0, 0
ICONST i2, 2
FOR i1, i0
  IDIV i3, i1, i2
  ROW v1, v0, i3
ENDFOR
EXIT
