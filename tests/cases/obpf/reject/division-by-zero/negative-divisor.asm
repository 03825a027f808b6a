# a % -8 is in -7 to 0.
# expect: E8-VERIFY:map-key pc=3 line=9
.name negative_divisor
.hook on_forward
.map m array 8
CTXI i0, step
ICONST i1, -8
IMOD i2, i0, i1
MINC i2, @m
EXIT
