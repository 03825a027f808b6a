# Binning into a hash.
# expect: E8-VERIFY:map-kind pc=1 line=7
.name hash_as_histogram
.hook on_forward
.map m hash 8
FCONST f0, 1.0
MHIST f0, @m
EXIT
