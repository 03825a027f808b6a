# FLOG of everything odd.
.name flog
.hook on_forward
.map h log2 1
CTXF f0, temperature
FCONST f1, -inf
FCONST f2, -0.0
FCONST f3, 1e300
FLOG f4, f0
FLOG f5, f1
FLOG f6, f2
FLOG f7, f3
MHIST f4, @h
MHIST f5, @h
MHIST f6, @h
MHIST f7, @h
EXIT
