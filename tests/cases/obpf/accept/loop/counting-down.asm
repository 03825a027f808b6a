# A count that falls, guarded from below.
.name counting_down
.hook on_forward
.map m array 8
ICONST i0, 7
ICONST i1, 100
ICONST i2, 0
ICONST i4, 1
FOR i3, i1
  MINC i0, @m
  ISUB i0, i0, i4
  IMAX i0, i0, i2
ENDFOR
EXIT
