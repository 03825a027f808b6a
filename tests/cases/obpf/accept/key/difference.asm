# 3 - f for f in [0, 3].
.name difference
.hook on_forward
.map m array 4
CTXF f0, temperature
FCONST f1, 0.0
FCONST f2, 3.0
FMAX f0, f0, f1
FMIN f0, f0, f2
FSUB f0, f2, f0
F2I i0, f0
MINC i0, @m
EXIT
