# Reading an unknown key takes no room.
# times: 8
# observe: drops m=0
.name reading_does_not_insert
.hook on_forward
.map m hash 2
CTXI i0, step
FCONST f0, 1.0
MGET f1, i0, @m
ICONST i1, 1
IMIN i2, i0, i1
MINC i2, @m
EXIT
