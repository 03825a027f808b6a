# An index that was measured.
# expect: E8-VERIFY:bounds pc=5 line=10
.name element_from_a_figure
.hook on_kd_step
VARG v0, labels
MAX f0, v0
F2I i0, f0
ICONST i1, 0
IMAX i0, i0, i1
LD f1, v0, i0
EXIT
