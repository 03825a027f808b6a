# As many rounds as a cell says.
# expect: E8-VERIFY:trips pc=3 line=9
.name from_a_map
.hook on_forward
.map m array 1
ICONST i0, 0
MGET f0, i0, @m
F2I i1, f0
FOR i2, i1
ENDFOR
EXIT
