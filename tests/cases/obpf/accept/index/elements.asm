# Every element by itself.
.name elements
.hook on_forward
VARG v0, x
DIM i0, v0, 0
DIM i1, v0, 1
FOR i2, i0
  ROW v1, v0, i2
  FOR i3, i1
    LD f0, v1, i3
  ENDFOR
ENDFOR
EXIT
