# A count that grows.
.name counter
.hook on_forward
.map m array 1
VARG v0, x
DIM i0, v0, 0
ICONST i2, 0
ICONST i3, 1
FOR i1, i0
  IADD i2, i2, i3
ENDFOR
I2F f0, i2
ICONST i4, 0
MSET i4, f0, @m
EXIT
