# A float clamped to [0, 7].
.name float_clamp
.hook on_forward
.map m array 8
CTXF f0, temperature
FCONST f1, 0.0
FCONST f2, 7.0
FMAX f0, f0, f1
FMIN f0, f0, f2
F2I i0, f0
MINC i0, @m
EXIT
