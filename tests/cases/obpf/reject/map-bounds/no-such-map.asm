# Map 3 of 1.
# expect: E8-VERIFY:map pc=1 line=7
.name no_such_map
.hook on_forward
.map m array 8
ICONST i0, 0
MINC i0, @3
EXIT
