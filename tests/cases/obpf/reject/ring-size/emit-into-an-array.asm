# EMIT into an array.
# expect: E8-VERIFY:map-kind pc=2 line=8
.name emit_into_an_array
.hook on_forward
.map m array 4
ICONST i0, 0
FCONST f0, 1.0
EMIT i0, f0, @m
EXIT
