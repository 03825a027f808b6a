# A hash of one key.
# times: 10
# observe: drops m=9
.name one_cell
.hook on_forward
.map m hash 1
CTXI i0, step
FCONST f0, 1.0
MINC i0, @m
EXIT
