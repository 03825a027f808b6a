# Negative ends are clamped to 0.
.name negative_ends
.hook on_forward
VARG v0, x
ICONST i0, -5
ICONST i1, -1
SLICE v1, v0, i0, i1
SUM f0, v1
EXIT
