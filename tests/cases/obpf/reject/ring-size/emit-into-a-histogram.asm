# EMIT into a histogram.
# expect: E8-VERIFY:map-kind pc=2 line=8
.name emit_into_a_histogram
.hook on_forward
.map m log2 1
ICONST i0, 0
FCONST f0, 1.0
EMIT i0, f0, @m
EXIT
