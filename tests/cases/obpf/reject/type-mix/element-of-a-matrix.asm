# An element of a view that has two axes.
# expect: E8-VERIFY:rank pc=3 line=8
.name element_of_a_matrix
.hook on_forward
VARG v0, x
DIM i0, v0, 0
FOR i1, i0
  LD f0, v0, i1
ENDFOR
EXIT
