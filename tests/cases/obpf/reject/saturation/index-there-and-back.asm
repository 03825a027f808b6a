# The lost part of a saturated sum comes back as a wrong index.
# expect: E8-VERIFY:bounds pc=7 line=12
.name index_there_and_back
.hook on_forward
VARG v0, x
DIM i0, v0, 0
ICONST i1, 9223372036854775807
ICONST i4, 9223372036854775806
FOR i2, i0
  IADD i3, i1, i2
  ISUB i3, i3, i4
  ROW v1, v0, i3
ENDFOR
EXIT
