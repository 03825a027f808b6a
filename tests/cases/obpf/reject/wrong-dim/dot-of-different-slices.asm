# Two slices of equal length are not proved to be: the view may end between them.
# expect: E8-VERIFY:shape pc=6 line=11
.name dot_of_different_slices
.hook on_kd_step
VARG v0, labels
ICONST i0, 0
ICONST i1, 4
ICONST i2, 8
SLICE v1, v0, i0, i1
SLICE v2, v0, i1, i2
DOT f0, v1, v2
EXIT
