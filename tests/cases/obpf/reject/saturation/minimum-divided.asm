# -2^63 // -1 saturates.
# expect: E8-VERIFY:map-key pc=3 line=9
.name minimum_divided
.hook on_forward
.map m array 8
ICONST i0, -9223372036854775808
ICONST i1, -1
IDIV i2, i0, i1
MINC i2, @m
EXIT
