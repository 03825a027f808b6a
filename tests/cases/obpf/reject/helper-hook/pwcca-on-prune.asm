# pwcca does not belong to on_prune.
# expect: E8-VERIFY:helper-hook pc=1 line=7
.name pwcca_on_prune
.hook on_prune
.map m array 2 per_site
VARG v0, mask
CALL_ASYNC v0, v0, pwcca, @m
EXIT
