# A guard against the size alone.
# expect: E8-VERIFY:bounds pc=7 line=12
.name guarded_above_only
.hook on_forward
VARG v0, x
DIM i0, v0, 0
CTXI i1, step
ICONST i2, 5
ISUB i3, i1, i2
ILT i4, i3, i0
IF i4
  ROW v1, v0, i3
ENDIF
EXIT
