# KLL of a view with itself.
.name kll_with_itself
.hook on_forward
VARG v0, x
KLL f0, v0, v0
EXIT
