# Row i and row i + 1 for i below n - 1.
.name neighbours
.hook on_forward
VARG v0, x
DIM i0, v0, 0
ICONST i2, 1
ISUB i3, i0, i2
FOR i1, i3
  ROW v1, v0, i1
  IADD i4, i1, i2
  ROW v2, v0, i4
  DOT f0, v1, v2
ENDFOR
EXIT
