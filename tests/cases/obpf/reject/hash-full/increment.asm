# The same by MINC.
# times: 6
# observe: drops m=2
.name increment
.hook on_forward
.map m hash 4
CTXI i0, step
FCONST f0, 1.0
MINC i0, @m
EXIT
