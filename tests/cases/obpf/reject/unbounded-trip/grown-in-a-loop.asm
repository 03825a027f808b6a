# A bound that an earlier loop has grown.
# expect: E8-VERIFY:trips pc=7 line=12
.name grown_in_a_loop
.hook on_forward
VARG v0, x
DIM i0, v0, 0
ICONST i1, 1
ICONST i2, 2
FOR i3, i0
  IMUL i1, i1, i2
ENDFOR
FOR i4, i1
ENDFOR
EXIT
