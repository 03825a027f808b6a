# Bursts of three, four times.
# times: 4
# observe: drops r=2
.name per_firing_burst
.hook on_forward
.map r ring 10
ICONST i0, 3
FCONST f0, 1.0
FOR i1, i0
  EMIT i1, f0, @r
ENDFOR
EXIT
