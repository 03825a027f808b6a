# rkd_distance does not belong to on_grad.
# expect: E8-VERIFY:helper-hook pc=1 line=6
.name rkd_distance_on_grad
.hook on_grad
VARG v0, grad
CALL f0, v0, v0, rkd_distance
EXIT
