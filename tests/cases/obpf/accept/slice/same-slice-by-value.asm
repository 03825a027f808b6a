# Ends that are equal by value.
.name same_slice_by_value
.hook on_kd_step
VARG v0, student
VARG v1, teacher
ICONST i0, 1
ICONST i1, 9
SLICE v2, v0, i0, i1
ICONST i2, 1
ICONST i3, 9
SLICE v3, v1, i2, i3
DOT f0, v2, v3
EXIT
