# Hundredths.
.name divided
.hook on_forward
.map m array 10
CTXF f0, temperature
FCONST f1, 0.0
FCONST f2, 99.0
FCONST f3, 10.0
FMAX f0, f0, f1
FMIN f0, f0, f2
FDIV f0, f0, f3
F2I i0, f0
MINC i0, @m
EXIT
