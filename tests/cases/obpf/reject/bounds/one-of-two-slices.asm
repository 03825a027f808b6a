# The size of one slice, and one of two slices.
# expect: E8-VERIFY:bounds pc=13 line=18
.name one_of_two_slices
.hook on_forward
VARG v0, x
ICONST i0, 0
ICONST i1, 4
ICONST i2, 8
SLICE v2, v0, i0, i1
DIM i3, v2, 0
CTXI i4, step
IF i4
  VMOV v1, v2
ELSE
  SLICE v1, v0, i1, i2
ENDIF
FOR i5, i3
  ROW v3, v1, i5
ENDFOR
EXIT
