# FMAX with NaN and infinities.
.name fmax
.hook on_forward
.map h log2 1
CTXF f0, temperature
FCONST f1, inf
FCONST f2, -0.0
FMAX f3, f0, f1
FMAX f4, f1, f2
FMAX f5, f2, f0
FMAX f6, f2, f2
FADD f3, f3, f4
FADD f5, f5, f6
MHIST f3, @h
MHIST f5, @h
EXIT
