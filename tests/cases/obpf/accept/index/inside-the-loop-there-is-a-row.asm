# In a loop over the rows there is a first one.
.name inside_the_loop_there_is_a_row
.hook on_forward
VARG v0, x
DIM i0, v0, 0
ICONST i2, 0
FOR i1, i0
  ROW v1, v0, i2
ENDFOR
EXIT
