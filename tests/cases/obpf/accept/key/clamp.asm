# min(max(step, 0), 7).
.name clamp
.hook on_forward
.map m array 8
CTXI i0, step
ICONST i1, 7
ICONST i2, 0
IMAX i0, i0, i2
IMIN i0, i0, i1
MINC i0, @m
EXIT
