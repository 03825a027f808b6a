# A right by another spelling.
# expect: E8-VERIFY:right pc=1 line=8
# rights: read_trace
.name almost_the_name
.hook on_forward
.map m array 3 per_site
VARG v0, x
CALL_ASYNC v0, v0, deep_knn, @m
EXIT
