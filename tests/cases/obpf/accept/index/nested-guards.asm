# One guard in another.
.name nested_guards
.hook on_forward
VARG v0, x
DIM i0, v0, 0
CTXI i1, step
ILT i2, i1, i0
IF i2
  ICONST i3, 0
  ILE i4, i3, i1
  IF i4
    ROW v1, v0, i1
  ENDIF
ENDIF
EXIT
