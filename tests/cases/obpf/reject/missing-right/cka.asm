# Nor outside the step.
# expect: E8-VERIFY:right pc=2 line=9
# rights: attach-probe
.name cka
.hook on_kd_step
.map m array 7 per_site
VARG v0, hs
VARG v1, ht
CALL_ASYNC v0, v1, cka, @m
EXIT
