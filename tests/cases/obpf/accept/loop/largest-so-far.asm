# The row with the largest norm, by hand.
.name largest_so_far
.hook on_forward
.map m hash 64
VARG v0, x
DIM i0, v0, 0
FCONST f0, -1.0
ICONST i2, 0
FOR i1, i0
  ROW v1, v0, i1
  SUMSQ f1, v1
  FLT i3, f0, f1
  IF i3
    FMOV f0, f1
    IMOV i2, i1
  ENDIF
ENDFOR
MINC i2, @m
EXIT
