# And of a slice of a slice.
.name slice_of_a_slice
.hook on_forward
VARG v0, x
ICONST i0, 2
ICONST i1, 8
SLICE v1, v0, i0, i1
SLICE v2, v1, i0, i1
DIM i2, v2, 0
FOR i3, i2
  ROW v3, v0, i3
ENDFOR
EXIT
