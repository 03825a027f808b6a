# The value put into a map was never written.
# expect: E8-VERIFY:undefined pc=1 line=7
.name map_value
.hook on_forward
.map m array 4
ICONST i0, 0
MSET i0, f0, @m
EXIT
