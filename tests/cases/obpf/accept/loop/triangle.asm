# A loop to the counter of another.
# dims: rows=256 width=64
.name triangle
.hook on_forward
VARG v0, x
DIM i0, v0, 0
FOR i1, i0
  FOR i2, i1
    ROW v1, v0, i1
    ROW v2, v0, i2
    DOT f0, v1, v2
  ENDFOR
ENDFOR
EXIT
