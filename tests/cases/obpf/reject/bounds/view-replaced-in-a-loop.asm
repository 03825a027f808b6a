# A view that the loop around replaces by a shorter one.
# expect: E8-VERIFY:bounds pc=4 line=9
.name view_replaced_in_a_loop
.hook on_forward
VARG v0, x
DIM i0, v0, 0
ICONST i1, 1
FOR i2, i0
  ROW v1, v0, i2
  SLICE v0, v0, i1, i0
ENDFOR
EXIT
