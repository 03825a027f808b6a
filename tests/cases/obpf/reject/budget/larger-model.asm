# Affordable for the reference sizes, not for the sizes of this model.
# expect: E8-VERIFY:cost pc=3 line=9
# dims: rows=8192 classes=50000
.name larger_model
.hook on_kd_step
VARG v0, student
VARG v1, teacher
KLL f0, v0, v1
EXIT
