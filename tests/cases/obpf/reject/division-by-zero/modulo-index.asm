# A row number modulo the rows, without asking whether there are any.
# expect: E8-VERIFY:bounds pc=4 line=9
.name modulo_index
.hook on_forward
VARG v0, x
DIM i0, v0, 0
ICONST i1, 7
IMOD i2, i1, i0
ROW v1, v0, i2
EXIT
