# A cell for each row in too small an array.
# expect: E8-VERIFY:map-key pc=4 line=10
.name max_by_row
.hook on_forward
.map m array 4095
VARG v0, x
DIM i0, v0, 0
FCONST f0, 1.0
FOR i1, i0
  MMAX i1, f0, @m
ENDFOR
EXIT
