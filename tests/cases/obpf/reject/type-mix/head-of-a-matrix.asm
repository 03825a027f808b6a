# HEAD needs three axes.
# expect: E8-VERIFY:rank pc=3 line=8
.name head_of_a_matrix
.hook on_forward
VARG v0, x
DIM i0, v0, 1
FOR i1, i0
  HEAD v1, v0, i1
ENDFOR
EXIT
