# step % 8.
.name modulo
.hook on_forward
.map m array 8
CTXI i0, step
ICONST i1, 8
IMOD i0, i0, i1
MINC i0, @m
EXIT
