# Keys at both ends of 64 bits.
# observe: drops m=1
.name extreme_keys
.hook on_forward
.map m hash 3
ICONST i0, -9223372036854775808
ICONST i1, 9223372036854775807
ICONST i2, -1
ICONST i3, 0
MINC i0, @m
MINC i1, @m
MINC i2, @m
MINC i3, @m
EXIT
