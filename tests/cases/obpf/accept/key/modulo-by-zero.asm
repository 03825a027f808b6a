# 5 % 0 is 5.
.name modulo_by_zero
.hook on_forward
.map m array 6
ICONST i0, 5
ICONST i1, 0
IMOD i2, i0, i1
MINC i2, @m
EXIT
