# A label that is a class.
.name label_as_an_index
.hook on_kd_step
.map h log2 1
VARG v0, student
VARG v1, labels
DIM i0, v0, 0
DIM i1, v0, 1
ICONST i9, 0
FOR i2, i0
  LD f0, v1, i2
  F2I i3, f0
  ILE i4, i9, i3
  ILT i5, i3, i1
  IAND i6, i4, i5
  IF i6
    ROW v2, v0, i2
    LD f1, v2, i3
    MHIST f1, @h
  ENDIF
ENDFOR
EXIT
