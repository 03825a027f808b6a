# mahalanobis does not belong to on_grad.
# expect: E8-VERIFY:helper-hook pc=1 line=7
.name mahalanobis_on_grad
.hook on_grad
.map m array 4 per_site
VARG v0, grad
CALL_ASYNC v0, v0, mahalanobis, @m
EXIT
