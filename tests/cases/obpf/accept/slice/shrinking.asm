# A view that gets shorter each round.
# dims: rows=100 width=100
.name shrinking
.hook on_forward
VARG v0, x
ICONST i0, 5
ICONST i1, 1
ICONST i2, 1000
FOR i3, i0
  SLICE v0, v0, i1, i2
ENDFOR
SUM f0, v0
EXIT
