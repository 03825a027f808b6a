# min(key, 8) in an array of 8.
# expect: E8-VERIFY:map-key pc=3 line=9
.name clamp_off_by_one
.hook on_forward
.map m array 8
CTXI i0, step
ICONST i1, 8
IMIN i0, i0, i1
MINC i0, @m
EXIT
