# An array that is not per site.
# expect: E8-VERIFY:helper-map pc=2 line=8
.name cka_map_shared
.hook on_kd_step
.map m array 7
VARG v0, hs
VARG v1, ht
CALL_ASYNC v0, v1, cka, @m
EXIT
