# KL of a view with itself.
.name kl_with_itself
.hook on_forward
VARG v0, x
KL f0, v0, v0
EXIT
