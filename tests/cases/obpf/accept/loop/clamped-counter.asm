# A count clamped to the last key.
.name clamped_counter
.hook on_forward
.map m array 8
ICONST i0, 0
ICONST i1, 100
ICONST i2, 7
ICONST i4, 1
FOR i3, i1
  MINC i0, @m
  IADD i0, i0, i4
  IMIN i0, i0, i2
ENDFOR
EXIT
