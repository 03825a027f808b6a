# A slice whose end is below its beginning.
.name empty
.hook on_forward
VARG v0, x
ICONST i0, 8
ICONST i1, 2
SLICE v1, v0, i0, i1
SUM f0, v1
MIN f1, v1
MAX f2, v1
MEAN f3, v1
EXIT
