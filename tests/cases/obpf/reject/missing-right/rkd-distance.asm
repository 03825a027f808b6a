# The right to attach is not the right to read traces.
# expect: E8-VERIFY:right pc=2 line=8
# rights: attach-probe
.name rkd_distance
.hook on_kd_step
VARG v0, hs
VARG v1, ht
CALL f0, v0, v1, rkd_distance
EXIT
