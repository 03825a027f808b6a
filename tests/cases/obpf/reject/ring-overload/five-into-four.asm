# The fifth entry of a ring of four.
# times: 5
# observe: drops r=1
.name five_into_four
.hook on_forward
.map r ring 4
CTXI i0, step
FCONST f0, 1.0
EMIT i0, f0, @r
EXIT
