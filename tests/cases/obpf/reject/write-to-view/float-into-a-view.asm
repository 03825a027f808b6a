# A sum into a view register.
# expect: E8-SYNTAX line=7
.name float_into_a_view
.hook on_forward
.map m array 4
VARG v0, x
SUM v1, v0
EXIT
