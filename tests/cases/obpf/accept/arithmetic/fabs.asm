# FABS of everything odd.
.name fabs
.hook on_forward
.map h log2 1
CTXF f0, temperature
FCONST f1, -inf
FCONST f2, -0.0
FCONST f3, 1e300
FABS f4, f0
FABS f5, f1
FABS f6, f2
FABS f7, f3
MHIST f4, @h
MHIST f5, @h
MHIST f6, @h
MHIST f7, @h
EXIT
