# A key of an array counted down from the site.
# expect: E8-VERIFY:map-key pc=3 line=9
.name map_key_negative
.hook on_forward
.map m array 512
CTXI i0, site
ICONST i1, 1
ISUB i2, i0, i1
MINC i2, @m
EXIT
