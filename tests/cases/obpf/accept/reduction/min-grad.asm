# MIN of param, kept in an array.
.name min_grad
.hook on_grad
.map m array 1
VARG v0, param
MIN f0, v0
ICONST i0, 0
MSET i0, f0, @m
EXIT
