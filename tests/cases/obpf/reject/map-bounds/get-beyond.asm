# Reading is checked like writing.
# expect: E8-VERIFY:map-key pc=1 line=7
.name get_beyond
.hook on_forward
.map m array 8
ICONST i0, 8
MGET f0, i0, @m
EXIT
