# The sparsity of each layer.
.name prune
.hook on_prune
.map m array 512
.map h linear 10 low=0.0 high=1.0
VARG v0, mask
MEAN f0, v0
CTXI i0, site
FCONST f1, 1.0
FSUB f1, f1, f0
MSET i0, f1, @m
CTXF f2, sparsity
MHIST f2, @h
EXIT
