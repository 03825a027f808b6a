# DOT of a view with itself.
.name dot_with_itself
.hook on_forward
VARG v0, x
DOT f0, v0, v0
EXIT
