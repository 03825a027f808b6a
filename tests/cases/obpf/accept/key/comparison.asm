# A comparison as a key.
.name comparison
.hook on_forward
.map m array 2
CTXI i0, step
ICONST i1, 100
ILT i2, i0, i1
MINC i2, @m
EXIT
