# 7.999 is 7.
.name float_fraction
.hook on_forward
.map m array 8
FCONST f0, 7.999
F2I i0, f0
MINC i0, @m
EXIT
