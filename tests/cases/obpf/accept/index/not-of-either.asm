# Not (i < 0 or i >= n).
.name not_of_either
.hook on_forward
VARG v0, x
DIM i0, v0, 0
CTXI i1, step
ICONST i2, 5
ISUB i1, i1, i2
ICONST i3, 0
ILT i4, i1, i3
ILE i5, i0, i1
IOR i6, i4, i5
IEQ i7, i6, i3
IF i7
  ROW v1, v0, i1
ENDIF
EXIT
