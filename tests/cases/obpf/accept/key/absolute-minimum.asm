# |-2^63| // (2^63-1) is 1.
.name absolute_minimum
.hook on_forward
.map m array 2
ICONST i0, -9223372036854775808
IABS i1, i0
ICONST i2, 9223372036854775807
IDIV i1, i1, i2
MINC i1, @m
EXIT
