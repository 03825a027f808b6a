# -1 & n is n, but -1 | n is -1.
# expect: E8-VERIFY:bounds pc=5 line=10
.name bits_of_a_negative
.hook on_forward
VARG v0, x
DIM i0, v0, 0
ICONST i1, -1
FOR i2, i0
  IOR i3, i2, i1
  ROW v1, v0, i3
ENDFOR
EXIT
