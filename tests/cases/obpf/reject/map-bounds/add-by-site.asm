# 512 sites in an array of 511.
# expect: E8-VERIFY:map-key pc=2 line=8
.name add_by_site
.hook on_forward
.map m array 511
CTXI i0, site
FCONST f0, 1.0
MADD i0, f0, @m
EXIT
