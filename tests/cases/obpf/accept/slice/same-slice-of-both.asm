# Both sides cut alike have equal shapes.
.name same_slice_of_both
.hook on_kd_step
VARG v0, student
VARG v1, teacher
ICONST i0, 1
ICONST i1, 9
SLICE v2, v0, i0, i1
SLICE v3, v1, i0, i1
KLL f0, v2, v3
EXIT
