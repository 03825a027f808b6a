# A map that is not declared.
# expect: E8-VERIFY:map pc=2 line=7
.name cka_map_missing
.hook on_kd_step
VARG v0, hs
VARG v1, ht
CALL_ASYNC v0, v1, cka, @2
EXIT
