# Mahalanobis distance of a layer's rows.
.name mahalanobis
.hook on_forward
.map m array 4 per_site
VARG v0, x
CALL_ASYNC v0, v0, mahalanobis, @m
EXIT
