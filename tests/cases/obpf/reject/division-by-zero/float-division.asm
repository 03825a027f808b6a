# x / 0.0 is an infinity: as an integer it is 2^63-1.
# expect: E8-VERIFY:map-key pc=4 line=10
.name float_division
.hook on_forward
.map m array 8
FCONST f0, 1.0
FCONST f1, 0.0
FDIV f2, f0, f1
F2I i0, f2
MINC i0, @m
EXIT
