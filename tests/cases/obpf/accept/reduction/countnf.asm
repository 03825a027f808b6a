# COUNTNF as a key of a hash.
.name countnf
.hook on_forward
.map m hash 16
VARG v0, x
COUNTNF i0, v0
MINC i0, @m
EXIT
