# The fifth key of a hash of four is a counted drop.
# times: 5
# observe: drops m=1
.name five_keys_in_four
.hook on_forward
.map m hash 4
CTXI i0, step
FCONST f0, 1.0
MADD i0, f0, @m
EXIT
