# The element after the last one.
# expect: E8-VERIFY:bounds pc=2 line=7
.name element_at_length
.hook on_kd_step
VARG v0, labels
DIM i0, v0, 0
LD f0, v0, i0
EXIT
