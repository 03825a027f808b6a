# fisher does not belong to on_prune.
# expect: E8-VERIFY:helper-hook pc=1 line=7
.name fisher_on_prune
.hook on_prune
.map m array 3 per_site
VARG v0, param
CALL_ASYNC v0, v0, fisher, @m
EXIT
