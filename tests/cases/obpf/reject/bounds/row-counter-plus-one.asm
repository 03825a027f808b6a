# One past the counter of a loop over the rows.
# expect: E8-VERIFY:bounds pc=5 line=10
.name row_counter_plus_one
.hook on_forward
VARG v0, x
DIM i0, v0, 0
ICONST i3, 1
FOR i1, i0
  IADD i2, i1, i3
  ROW v1, v0, i2
ENDFOR
EXIT
