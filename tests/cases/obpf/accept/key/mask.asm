# step & 7.
.name mask
.hook on_forward
.map m array 8
CTXI i0, step
ICONST i1, 7
IAND i0, i0, i1
MINC i0, @m
EXIT
