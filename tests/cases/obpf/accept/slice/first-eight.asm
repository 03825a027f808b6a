# The first eight rows, or as many as there are.
.name first_eight
.hook on_forward
VARG v0, x
ICONST i0, 0
ICONST i1, 8
SLICE v1, v0, i0, i1
SUM f0, v1
EXIT
