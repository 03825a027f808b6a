# n - 1 - i, guarded from below.
.name backwards
.hook on_forward
VARG v0, x
DIM i0, v0, 0
ICONST i2, 1
ISUB i3, i0, i2
FOR i1, i0
  ISUB i4, i3, i1
  ICONST i5, 0
  ILE i6, i5, i4
  IF i6
    ROW v1, v0, i4
  ENDIF
ENDFOR
EXIT
