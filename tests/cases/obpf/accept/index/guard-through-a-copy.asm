# A guard on a copy is a guard on the value.
.name guard_through_a_copy
.hook on_forward
VARG v0, x
DIM i0, v0, 0
CTXI i1, site
IMOV i2, i1
ILT i3, i2, i0
IF i3
  ROW v1, v0, i1
ENDIF
EXIT
