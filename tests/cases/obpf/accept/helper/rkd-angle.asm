# RKD angle of hidden states.
.name rkd_angle
.hook on_kd_step
.map h log2 1
VARG v0, hs
VARG v1, ht
CALL f0, v0, v1, rkd_angle
MHIST f0, @h
EXIT
