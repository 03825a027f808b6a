# A helper above the tier that is allowed.
# expect: E8-VERIFY:tier pc=1 line=8
# tier: pure
.name knn_in_pure
.hook on_forward
.map m array 3 per_site
VARG v0, x
CALL_ASYNC v0, v0, deep_knn, @m
EXIT
