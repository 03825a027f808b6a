# -(step % -8).
.name negative_modulo
.hook on_forward
.map m array 8
CTXI i0, step
ICONST i1, -8
IMOD i2, i0, i1
INEG i2, i2
MINC i2, @m
EXIT
