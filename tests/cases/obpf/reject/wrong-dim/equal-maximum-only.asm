# Two symbols that have the same maximum are still two sizes.
# expect: E8-VERIFY:bounds pc=4 line=10
# dims: rows=64 hidden_rows=64
.name equal_maximum_only
.hook on_kd_step
VARG v0, student
VARG v1, hs
DIM i0, v0, 0
FOR i1, i0
  ROW v2, v1, i1
ENDFOR
EXIT
