# A program that returns when there is no row.
.name return_early
.hook on_forward
VARG v0, x
DIM i0, v0, 0
ICONST i1, 1
ILT i2, i0, i1
IF i2
  EXIT
ENDIF
ICONST i3, 0
ROW v1, v0, i3
SUM f0, v1
EXIT
