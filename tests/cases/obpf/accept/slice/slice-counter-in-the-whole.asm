# A counter of the slice is in the view that it was cut from.
.name slice_counter_in_the_whole
.hook on_forward
VARG v0, x
ICONST i0, 2
ICONST i1, 8
SLICE v1, v0, i0, i1
DIM i2, v1, 0
FOR i3, i2
  ROW v2, v0, i3
ENDFOR
EXIT
