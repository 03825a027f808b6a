# NaN is key 0.
.name float_nan
.hook on_forward
.map m array 4
FCONST f0, inf
FSUB f1, f0, f0
FCONST f2, 0.0
FCONST f3, 3.0
FMAX f1, f1, f2
FMIN f1, f1, f3
F2I i0, f1
MINC i0, @m
EXIT
