# SVCCA reads traces.
# expect: E8-VERIFY:right pc=2 line=9
# rights:
.name svcca
.hook on_kd_step
.map m array 2 per_site
VARG v0, hs
VARG v1, ht
CALL_ASYNC v0, v1, svcca, @m
EXIT
