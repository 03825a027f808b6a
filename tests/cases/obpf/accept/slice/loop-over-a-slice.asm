# Rows of a slice, counted by it.
.name loop_over_a_slice
.hook on_forward
VARG v0, x
ICONST i0, 2
ICONST i1, 8
SLICE v1, v0, i0, i1
DIM i2, v1, 0
FOR i3, i2
  ROW v2, v1, i3
ENDFOR
EXIT
