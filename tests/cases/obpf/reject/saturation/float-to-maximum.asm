# F2I of +inf is 2^63-1.
# expect: E8-VERIFY:map-key pc=2 line=8
.name float_to_maximum
.hook on_forward
.map m array 8
FCONST f0, inf
F2I i0, f0
MINC i0, @m
EXIT
