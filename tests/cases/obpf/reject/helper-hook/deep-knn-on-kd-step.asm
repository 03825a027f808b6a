# deep_knn does not belong to on_kd_step.
# expect: E8-VERIFY:helper-hook pc=1 line=7
.name deep_knn_on_kd_step
.hook on_kd_step
.map m array 3 per_site
VARG v0, hs
CALL_ASYNC v0, v0, deep_knn, @m
EXIT
