# a % 0 is a, so the key is not below the divisor.
# expect: E8-VERIFY:map-key pc=3 line=9
.name modulo_keeps_a
.hook on_forward
.map m array 8
CTXI i0, step
ICONST i1, 0
IMOD i2, i0, i1
MINC i2, @m
EXIT
