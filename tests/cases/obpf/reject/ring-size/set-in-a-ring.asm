# Nor change it.
# expect: E8-VERIFY:map-kind pc=2 line=8
.name set_in_a_ring
.hook on_forward
.map r ring 4
ICONST i0, 0
FCONST f0, 1.0
MSET i0, f0, @r
EXIT
