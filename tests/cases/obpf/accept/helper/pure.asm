# A program without helpers is of tier pure.
# tier: pure
.name pure
.hook on_forward
VARG v0, x
SUM f0, v0
EXIT
