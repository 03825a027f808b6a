# -(-2^63) - (2^63-1) is 0.
.name negated_minimum
.hook on_forward
.map m array 1
ICONST i0, -9223372036854775808
INEG i1, i0
ICONST i2, 9223372036854775807
ISUB i1, i1, i2
MINC i1, @m
EXIT
