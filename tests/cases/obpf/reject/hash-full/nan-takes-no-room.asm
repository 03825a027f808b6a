# A NaN is counted and takes no key.
# times: 3
# observe: drops m=0 nans m=3
.name nan_takes_no_room
.hook on_forward
.map m hash 1
CTXF f0, temperature
CTXI i0, step
MSET i0, f0, @m
EXIT
