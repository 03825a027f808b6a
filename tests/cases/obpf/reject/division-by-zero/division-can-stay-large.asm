# step // site is step at site 1, and may be anything.
# expect: E8-VERIFY:map-key pc=3 line=9
.name division_can_stay_large
.hook on_forward
.map m array 512
CTXI i0, step
CTXI i1, site
IDIV i2, i0, i1
MINC i2, @m
EXIT
