# KL of logits where one side is cut.
# expect: E8-VERIFY:shape pc=5 line=10
.name kll_of_transposed_cut
.hook on_kd_step
VARG v0, student
VARG v1, teacher
DIM i0, v0, 0
ICONST i1, 1
SLICE v2, v1, i1, i0
KLL f0, v0, v2
EXIT
