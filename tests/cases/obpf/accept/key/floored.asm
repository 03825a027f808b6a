# -1 // 2 + 1 is 0.
.name floored
.hook on_forward
.map m array 1
ICONST i0, -1
ICONST i1, 2
IDIV i2, i0, i1
ICONST i3, 1
IADD i2, i2, i3
MINC i2, @m
EXIT
