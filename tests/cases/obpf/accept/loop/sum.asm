# A sum that grows.
.name sum
.hook on_forward
.map m array 1
VARG v0, x
DIM i0, v0, 0
FCONST f0, 0.0
FOR i1, i0
  ROW v1, v0, i1
  SUM f1, v1
  FADD f0, f0, f1
ENDFOR
ICONST i2, 0
MSET i2, f0, @m
EXIT
