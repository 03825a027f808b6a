# Seven figures into six cells.
# expect: E8-VERIFY:helper-map pc=2 line=8
.name cka_map_too_small
.hook on_kd_step
.map m array 6 per_site
VARG v0, hs
VARG v1, ht
CALL_ASYNC v0, v1, cka, @m
EXIT
