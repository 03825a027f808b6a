# The counter of the whole view indexes a slice of it.
# expect: E8-VERIFY:bounds pc=5 line=10
.name slice_then_old_bound
.hook on_forward
VARG v0, x
DIM i0, v0, 0
ICONST i1, 1
SLICE v1, v0, i1, i0
FOR i2, i0
  ROW v2, v1, i2
ENDFOR
EXIT
