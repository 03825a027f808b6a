# A full hash still takes the keys it holds.
# times: 12
# observe: drops m=0
.name known_keys_go_on
.hook on_forward
.map m hash 4
CTXI i0, step
FCONST f0, 1.0
ICONST i1, 4
IMOD i2, i0, i1
MINC i2, @m
EXIT
