# 2^63-1 + 1 - (2^63-1) is 0.
.name maximum_plus_one
.hook on_forward
.map m array 1
ICONST i0, 9223372036854775807
ICONST i1, 1
IADD i2, i0, i1
ISUB i2, i2, i0
MINC i2, @m
EXIT
