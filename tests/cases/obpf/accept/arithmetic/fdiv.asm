# FDIV with NaN and infinities.
.name fdiv
.hook on_forward
.map h log2 1
CTXF f0, temperature
FCONST f1, inf
FCONST f2, -0.0
FDIV f3, f0, f1
FDIV f4, f1, f2
FDIV f5, f2, f0
FDIV f6, f2, f2
FADD f3, f3, f4
FADD f5, f5, f6
MHIST f3, @h
MHIST f5, @h
EXIT
