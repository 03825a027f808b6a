# floor of [0, 7.9].
.name floor
.hook on_forward
.map m array 8
CTXF f0, temperature
FCONST f1, 0.0
FCONST f2, 7.9
FMAX f0, f0, f1
FMIN f0, f0, f2
FFLOOR f0, f0
F2I i0, f0
MINC i0, @m
EXIT
