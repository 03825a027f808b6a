# MAX of x, kept in an array.
.name max_forward
.hook on_forward
.map m array 1
VARG v0, x
MAX f0, v0
ICONST i0, 0
MSET i0, f0, @m
EXIT
