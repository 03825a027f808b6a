# ISFINITE as a key.
.name finite
.hook on_forward
.map m array 2
CTXF f0, temperature
ISFINITE i0, f0
MINC i0, @m
EXIT
