# i % n is below n, except for n = 0.
# expect: E8-VERIFY:bounds pc=4 line=9
.name modulo_without_guard
.hook on_forward
VARG v0, x
DIM i0, v0, 0
CTXI i1, step
IMOD i2, i1, i0
ROW v1, v0, i2
EXIT
