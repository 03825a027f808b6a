# IEQ at the ends of 64 bits.
.name ieq
.hook on_forward
.map m hash 4
ICONST i0, -9223372036854775808
ICONST i1, 9223372036854775807
CTXI i2, step
ICONST i3, -1
IEQ i4, i0, i1
IEQ i5, i2, i0
IEQ i6, i0, i3
IEQ i7, i3, i2
MINC i4, @m
MINC i5, @m
MINC i6, @m
MINC i7, @m
EXIT
