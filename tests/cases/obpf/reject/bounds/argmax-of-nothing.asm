# ARGMAX of an empty view is 0, which is no row of it.
# expect: E8-VERIFY:bounds pc=2 line=7
.name argmax_of_nothing
.hook on_kd_step
VARG v0, labels
ARGMAX i0, v0
LD f0, v0, i0
EXIT
