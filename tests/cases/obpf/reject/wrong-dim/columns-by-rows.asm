# Columns counted by the rows.
# expect: E8-VERIFY:bounds pc=3 line=8
.name columns_by_rows
.hook on_forward
VARG v0, x
DIM i0, v0, 0
FOR i1, i0
  COL v1, v0, i1
ENDFOR
EXIT
