# The second axis of a row.
# expect: E8-VERIFY:axis pc=4 line=9
.name axis_missing_of_a_row
.hook on_forward
VARG v0, x
DIM i0, v0, 0
FOR i1, i0
  ROW v1, v0, i1
  DIM i2, v1, 1
ENDFOR
EXIT
