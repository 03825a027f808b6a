# Rows counted by the width.
# expect: E8-VERIFY:bounds pc=3 line=8
.name rows_by_width
.hook on_forward
VARG v0, x
DIM i0, v0, 1
FOR i1, i0
  ROW v1, v0, i1
ENDFOR
EXIT
