# A hook without views.
.name snapshot
.hook on_snapshot
.map m hash 64
CTXI i0, step
CTXI i1, firing
I2F f0, i1
MSET i0, f0, @m
EXIT
