# |-2^63| is 2^63-1.
# expect: E8-VERIFY:map-key pc=2 line=8
.name absolute_minimum
.hook on_forward
.map m array 8
ICONST i0, -9223372036854775808
IABS i1, i0
MINC i1, @m
EXIT
