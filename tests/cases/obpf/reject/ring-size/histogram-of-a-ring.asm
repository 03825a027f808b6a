# MHIST into a ring.
# expect: E8-VERIFY:map-kind pc=1 line=7
.name histogram_of_a_ring
.hook on_forward
.map r ring 4
FCONST f0, 1.0
MHIST f0, @r
EXIT
