# A key of a histogram.
# expect: E8-VERIFY:map-kind pc=1 line=7
.name histogram_by_key
.hook on_forward
.map h log2 1
ICONST i0, 0
MINC i0, @h
EXIT
