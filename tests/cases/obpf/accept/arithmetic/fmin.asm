# FMIN with NaN and infinities.
.name fmin
.hook on_forward
.map h log2 1
CTXF f0, temperature
FCONST f1, inf
FCONST f2, -0.0
FMIN f3, f0, f1
FMIN f4, f1, f2
FMIN f5, f2, f0
FMIN f6, f2, f2
FADD f3, f3, f4
FADD f5, f5, f6
MHIST f3, @h
MHIST f5, @h
EXIT
