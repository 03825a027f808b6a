# One flag, or the other, but not both.
.name xor_of_flags
.hook on_forward
.map m array 2
CTXI i0, step
ICONST i1, 100
ILT i2, i0, i1
CTXF f0, temperature
ISFINITE i3, f0
IXOR i2, i2, i3
MINC i2, @m
EXIT
