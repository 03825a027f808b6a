# step % rows may be step, when there is no row.
# expect: E8-VERIFY:map-key pc=4 line=10
.name modulo_of_a_size
.hook on_forward
.map m array 8192
VARG v0, x
DIM i0, v0, 0
CTXI i1, step
IMOD i2, i1, i0
MINC i2, @m
EXIT
