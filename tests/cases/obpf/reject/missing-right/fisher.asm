# A gradient is a trace.
# expect: E8-VERIFY:right pc=1 line=8
# rights: kfs-read
.name fisher
.hook on_grad
.map m array 3 per_site
VARG v0, grad
CALL_ASYNC v0, v0, fisher, @m
EXIT
