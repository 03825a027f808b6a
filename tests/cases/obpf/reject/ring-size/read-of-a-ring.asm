# A program cannot read what it emitted.
# expect: E8-VERIFY:map-kind pc=1 line=7
.name read_of_a_ring
.hook on_forward
.map r ring 4
ICONST i0, 0
MGET f0, i0, @r
EXIT
