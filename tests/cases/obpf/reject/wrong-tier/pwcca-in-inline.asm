# A helper above the tier that is allowed.
# expect: E8-VERIFY:tier pc=2 line=9
# tier: inline
.name pwcca_in_inline
.hook on_kd_step
.map m array 2 per_site
VARG v0, hs
VARG v1, ht
CALL_ASYNC v0, v1, pwcca, @m
EXIT
