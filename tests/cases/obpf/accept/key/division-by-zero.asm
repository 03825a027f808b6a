# step // 0 is 0.
.name division_by_zero
.hook on_forward
.map m array 1
CTXI i0, step
ICONST i1, 0
IDIV i2, i0, i1
MINC i2, @m
EXIT
