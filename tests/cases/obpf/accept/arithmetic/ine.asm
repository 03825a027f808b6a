# INE at the ends of 64 bits.
.name ine
.hook on_forward
.map m hash 4
ICONST i0, -9223372036854775808
ICONST i1, 9223372036854775807
CTXI i2, step
ICONST i3, -1
INE i4, i0, i1
INE i5, i2, i0
INE i6, i0, i3
INE i7, i3, i2
MINC i4, @m
MINC i5, @m
MINC i6, @m
MINC i7, @m
EXIT
