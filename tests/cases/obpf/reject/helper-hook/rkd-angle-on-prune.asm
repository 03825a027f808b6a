# rkd_angle does not belong to on_prune.
# expect: E8-VERIFY:helper-hook pc=1 line=6
.name rkd_angle_on_prune
.hook on_prune
VARG v0, mask
CALL f0, v0, v0, rkd_angle
EXIT
