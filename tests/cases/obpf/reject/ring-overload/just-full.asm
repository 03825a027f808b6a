# Four into four.
# times: 4
# observe: drops r=0
.name just_full
.hook on_forward
.map r ring 4
CTXI i0, step
FCONST f0, 1.0
EMIT i0, f0, @r
EXIT
