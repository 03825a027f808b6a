# 2^62 * 2 saturates; it does not become -2^63 or 0.
# expect: E8-VERIFY:map-key pc=3 line=9
.name product
.hook on_forward
.map m array 8
ICONST i0, 4611686018427387904
ICONST i1, 4
IMUL i2, i0, i1
MINC i2, @m
EXIT
