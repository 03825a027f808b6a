# Three loops over thousands of rows within each other.
# expect: E8-VERIFY:cost pc=2 line=7
.name three_loops
.hook on_forward
VARG v0, x
DIM i0, v0, 0
FOR i1, i0
  FOR i2, i0
    FOR i3, i0
    ENDFOR
  ENDFOR
ENDFOR
EXIT
