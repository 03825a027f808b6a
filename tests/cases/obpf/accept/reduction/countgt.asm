# Elements above a threshold.
.name countgt
.hook on_forward
.map m array 1
VARG v0, x
FCONST f0, 0.5
COUNTGT i0, v0, f0
I2F f1, i0
ICONST i1, 0
MADD i1, f1, @m
EXIT
