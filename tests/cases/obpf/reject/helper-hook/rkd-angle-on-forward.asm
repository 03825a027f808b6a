# rkd_angle does not belong to on_forward.
# expect: E8-VERIFY:helper-hook pc=1 line=6
.name rkd_angle_on_forward
.hook on_forward
VARG v0, x
CALL f0, v0, v0, rkd_angle
EXIT
