# A slice of a vector.
.name of_labels
.hook on_kd_step
VARG v0, labels
ICONST i0, 0
ICONST i1, 4
SLICE v1, v0, i0, i1
DIM i2, v1, 0
FOR i3, i2
  LD f0, v1, i3
ENDFOR
EXIT
