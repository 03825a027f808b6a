# A view where a map belongs.
# expect: E8-SYNTAX line=9
.name map_write_to_a_view
.hook on_forward
.map m array 4
VARG v0, x
FCONST f0, 0.0
ICONST i0, 0
MSET i0, f0, v0
EXIT
