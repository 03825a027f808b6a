# Each ring counts its own.
# times: 6
# observe: drops r=4 drops s=1
.name two_rings
.hook on_forward
.map r ring 2
.map s ring 5
CTXI i0, step
FCONST f0, 1.0
EMIT i0, f0, @r
EMIT i0, f0, @s
EXIT
