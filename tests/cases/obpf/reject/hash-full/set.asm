# The same by MSET.
# times: 7
# observe: drops m=3
.name set
.hook on_forward
.map m hash 4
CTXI i0, step
FCONST f0, 1.0
MSET i0, f0, @m
EXIT
