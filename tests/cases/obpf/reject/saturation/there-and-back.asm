# (i + MAX) - MAX is 0 for i >= 0 but -1 for i = -1.
# expect: E8-VERIFY:map-key pc=6 line=12
.name there_and_back
.hook on_forward
.map m array 8
CTXI i0, site
ICONST i1, 1
ISUB i0, i0, i1
ICONST i2, 9223372036854775807
IADD i3, i0, i2
ISUB i3, i3, i2
MINC i3, @m
EXIT
