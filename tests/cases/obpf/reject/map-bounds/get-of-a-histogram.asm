# Reading a bin.
# expect: E8-VERIFY:map-kind pc=1 line=7
.name get_of_a_histogram
.hook on_forward
.map h linear 8 low=0.0 high=1.0
ICONST i0, 0
MGET f0, i0, @h
EXIT
