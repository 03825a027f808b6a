# Arithmetic on a view.
# expect: E8-SYNTAX line=7
.name view_as_number
.hook on_forward
.map m array 4
VARG v0, x
FADD f0, v0, v0
EXIT
