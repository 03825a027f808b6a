# Below both sizes.
.name bounded_by_two_sizes
.hook on_forward
VARG v0, x
DIM i0, v0, 0
DIM i1, v0, 1
IMIN i2, i0, i1
FOR i3, i2
  ROW v1, v0, i3
  LD f0, v1, i3
ENDFOR
EXIT
