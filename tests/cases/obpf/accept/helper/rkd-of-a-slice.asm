# RKD distance of the same rows of both.
.name rkd_of_a_slice
.hook on_kd_step
VARG v0, hs
VARG v1, ht
ICONST i0, 0
ICONST i1, 32
SLICE v0, v0, i0, i1
SLICE v1, v1, i0, i1
CALL f0, v0, v1, rkd_distance
EXIT
