# CALL_ASYNC of a helper that runs inside.
# expect: E8-VERIFY:helper pc=2 line=8
.name asynchronous_call_of_an_inline_one
.hook on_kd_step
.map m array 1 per_site
VARG v0, hs
VARG v1, ht
CALL_ASYNC v0, v1, rkd_angle, @m
EXIT
