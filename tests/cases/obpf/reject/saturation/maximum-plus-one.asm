# 2^63-1 + 1 stays where it is; it does not wrap below 0.
# expect: E8-VERIFY:map-key pc=3 line=9
.name maximum_plus_one
.hook on_forward
.map m array 8
ICONST i0, 9223372036854775807
ICONST i1, 1
IADD i2, i0, i1
MINC i2, @m
EXIT
