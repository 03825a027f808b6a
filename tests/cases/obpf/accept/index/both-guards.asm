# An index from the step, guarded on both sides.
.name both_guards
.hook on_forward
VARG v0, x
DIM i0, v0, 0
CTXI i1, step
ICONST i2, 5
ISUB i1, i1, i2
ICONST i3, 0
ILE i4, i3, i1
ILT i5, i1, i0
IAND i6, i4, i5
IF i6
  ROW v1, v0, i1
ENDIF
EXIT
