# F2I of -1e300 is -2^63.
# expect: E8-VERIFY:map-key pc=2 line=8
.name float_to_minimum
.hook on_forward
.map m array 8
FCONST f0, -1e300
F2I i0, f0
MINC i0, @m
EXIT
