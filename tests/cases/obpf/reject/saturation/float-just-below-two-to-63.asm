# 2^63 as a double is above every integer.
# expect: E8-VERIFY:map-key pc=4 line=10
.name float_just_below_two_to_63
.hook on_forward
.map m array 7
FCONST f0, 9223372036854775808.0
F2I i0, f0
ICONST i1, 9223372036854775800
ISUB i0, i0, i1
MINC i0, @m
EXIT
