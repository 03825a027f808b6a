# An activation is one.
# expect: E8-VERIFY:right pc=1 line=8
# rights: write-params
.name mahalanobis
.hook on_forward
.map m array 4 per_site
VARG v0, x
CALL_ASYNC v0, v0, mahalanobis, @m
EXIT
