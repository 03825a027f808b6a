# mahalanobis does not belong to on_kd_step.
# expect: E8-VERIFY:helper-hook pc=1 line=7
.name mahalanobis_on_kd_step
.hook on_kd_step
.map m array 4 per_site
VARG v0, student
CALL_ASYNC v0, v0, mahalanobis, @m
EXIT
