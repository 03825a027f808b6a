# PWCCA outside the step.
.name pwcca
.hook on_kd_step
.map m array 2 per_site
VARG v0, hs
VARG v1, ht
CALL_ASYNC v0, v1, pwcca, @m
EXIT
