# An index that a loop takes below 0.
# expect: E8-VERIFY:bounds pc=5 line=10
.name shrinks_in_a_loop
.hook on_forward
VARG v0, x
DIM i0, v0, 0
ICONST i1, 0
ICONST i2, 1
FOR i3, i0
  ROW v1, v0, i1
  ISUB i1, i1, i2
ENDFOR
EXIT
