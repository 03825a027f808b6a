# A column of what is already one.
# expect: E8-VERIFY:rank pc=4 line=9
.name column_of_a_column
.hook on_forward
VARG v0, x
DIM i0, v0, 1
FOR i1, i0
  COL v1, v0, i1
  COL v2, v1, i1
ENDFOR
EXIT
