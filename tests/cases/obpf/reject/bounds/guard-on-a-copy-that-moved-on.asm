# The guard speaks of the value before it grew.
# expect: E8-VERIFY:bounds pc=7 line=12
.name guard_on_a_copy_that_moved_on
.hook on_forward
VARG v0, x
DIM i0, v0, 0
ICONST i1, 0
ICONST i3, 1
ILT i2, i1, i0
IADD i1, i1, i3
IF i2
  ROW v1, v0, i1
ENDIF
EXIT
