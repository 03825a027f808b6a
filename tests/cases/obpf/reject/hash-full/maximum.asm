# The same by MMAX.
# times: 6
# observe: drops m=2
.name maximum
.hook on_forward
.map m hash 4
CTXI i0, step
FCONST f0, 1.0
MMAX i0, f0, @m
EXIT
