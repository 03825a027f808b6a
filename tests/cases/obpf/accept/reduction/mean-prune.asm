# MEAN of param, kept in an array.
.name mean_prune
.hook on_prune
.map m array 1
VARG v0, param
MEAN f0, v0
ICONST i0, 0
MSET i0, f0, @m
EXIT
