# ARGMAX as a key of a hash.
.name argmax
.hook on_forward
.map m hash 16
VARG v0, x
ARGMAX i0, v0
MINC i0, @m
EXIT
