# One side cut.
# expect: E8-VERIFY:helper-shape pc=5 line=11
.name cka_of_a_slice
.hook on_kd_step
.map m array 7 per_site
VARG v0, hs
VARG v1, ht
ICONST i0, 0
ICONST i1, 64
SLICE v2, v0, i0, i1
CALL_ASYNC v2, v1, cka, @m
EXIT
