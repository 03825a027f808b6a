# A reduction of the whole matrix for each of its rows.
# expect: E8-VERIFY:cost pc=2 line=7
.name loop_of_reductions
.hook on_forward
VARG v0, x
DIM i0, v0, 0
FOR i1, i0
  SUM f0, v0
ENDFOR
EXIT
