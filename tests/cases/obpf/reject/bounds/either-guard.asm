# One of two guards holds; the index needs the first.
# expect: E8-VERIFY:bounds pc=8 line=13
.name either_guard
.hook on_forward
VARG v0, x
DIM i0, v0, 0
CTXI i1, step
CTXI i9, site
ILT i2, i1, i0
ILT i3, i9, i0
IOR i4, i2, i3
IF i4
  ROW v1, v0, i1
ENDIF
EXIT
