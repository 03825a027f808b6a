# Three registers that change places.
.name rotating
.hook on_forward
.map m hash 3
ICONST i0, 0
ICONST i1, 1
ICONST i2, 2
ICONST i9, 10
FOR i3, i9
  IMOV i4, i0
  IMOV i0, i1
  IMOV i1, i2
  IMOV i2, i4
  MINC i0, @m
ENDFOR
EXIT
