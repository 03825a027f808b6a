# What saturates comes back as 0.
.name saturated_index
.hook on_forward
VARG v0, x
DIM i0, v0, 0
ICONST i1, -9223372036854775808
FOR i2, i0
  IADD i3, i1, i2
  IADD i3, i3, i1
  ISUB i3, i3, i1
  ROW v1, v0, i3
ENDFOR
EXIT
