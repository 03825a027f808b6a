# A hash for results.
# expect: E8-VERIFY:helper-map pc=2 line=8
.name cka_map_a_hash
.hook on_kd_step
.map m hash 7
VARG v0, hs
VARG v1, ht
CALL_ASYNC v0, v1, cka, @m
EXIT
