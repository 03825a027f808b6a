# Two flags as a number of two bits.
.name two_flags
.hook on_forward
.map m array 4
CTXI i0, step
ICONST i1, 100
ILT i2, i0, i1
CTXF f0, temperature
ISFINITE i3, f0
IADD i3, i3, i3
IADD i2, i2, i3
MINC i2, @m
EXIT
