# A window that moves.
.name slice_in_a_loop
.hook on_forward
VARG v0, x
DIM i0, v0, 0
ICONST i2, 4
FOR i1, i0
  IADD i3, i1, i2
  SLICE v1, v0, i1, i3
  ABSMAX f0, v1
ENDFOR
EXIT
