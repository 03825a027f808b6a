# -2^63 // -1 is 2^63-1.
.name minimum_over_minus_one
.hook on_forward
.map m array 1
ICONST i0, -9223372036854775808
ICONST i1, -1
IDIV i2, i0, i1
ICONST i3, 9223372036854775807
ISUB i2, i3, i2
MINC i2, @m
EXIT
