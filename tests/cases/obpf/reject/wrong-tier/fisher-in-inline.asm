# A helper above the tier that is allowed.
# expect: E8-VERIFY:tier pc=1 line=8
# tier: inline
.name fisher_in_inline
.hook on_grad
.map m array 3 per_site
VARG v0, grad
CALL_ASYNC v0, v0, fisher, @m
EXIT
