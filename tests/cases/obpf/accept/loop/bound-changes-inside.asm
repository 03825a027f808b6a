# The bound is read once, at entry.
.name bound_changes_inside
.hook on_forward
.map m array 5
ICONST i0, 5
ICONST i2, 1000
FOR i1, i0
  IMOV i0, i2
  MINC i1, @m
ENDFOR
EXIT
