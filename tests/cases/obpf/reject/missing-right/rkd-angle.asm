# Other rights do not help.
# expect: E8-VERIFY:right pc=2 line=8
# rights: attach-probe kfs-read submit-policy
.name rkd_angle
.hook on_kd_step
VARG v0, hs
VARG v1, ht
CALL f0, v0, v1, rkd_angle
EXIT
