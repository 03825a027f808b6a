# A row of a view that has one axis is a number, not a view.
# expect: E8-VERIFY:rank pc=6 line=11
.name row_of_a_vector
.hook on_forward
VARG v0, x
DIM i0, v0, 0
FOR i1, i0
  ROW v1, v0, i1
  DIM i2, v1, 0
  FOR i3, i2
    ROW v2, v1, i3
  ENDFOR
ENDFOR
EXIT
