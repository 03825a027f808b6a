# A helper above the tier that is allowed.
# expect: E8-VERIFY:tier pc=2 line=8
# tier: pure
.name rkd_distance_in_pure
.hook on_kd_step
VARG v0, hs
VARG v1, ht
CALL f0, v0, v1, rkd_distance
EXIT
