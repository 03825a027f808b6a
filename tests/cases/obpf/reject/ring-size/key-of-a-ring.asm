# A ring has no keys.
# expect: E8-VERIFY:map-kind pc=1 line=7
.name key_of_a_ring
.hook on_forward
.map r ring 4
ICONST i0, 0
MINC i0, @r
EXIT
