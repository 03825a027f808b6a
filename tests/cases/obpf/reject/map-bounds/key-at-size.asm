# Key 8 of an array of 8.
# expect: E8-VERIFY:map-key pc=1 line=7
.name key_at_size
.hook on_forward
.map m array 8
ICONST i0, 8
MINC i0, @m
EXIT
