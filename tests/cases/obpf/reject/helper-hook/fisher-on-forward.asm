# fisher does not belong to on_forward.
# expect: E8-VERIFY:helper-hook pc=1 line=7
.name fisher_on_forward
.hook on_forward
.map m array 3 per_site
VARG v0, x
CALL_ASYNC v0, v0, fisher, @m
EXIT
