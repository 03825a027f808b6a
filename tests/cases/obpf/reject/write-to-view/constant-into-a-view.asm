# A constant into a view register.
# expect: E8-SYNTAX line=6
.name constant_into_a_view
.hook on_forward
.map m array 4
ICONST v0, 1
EXIT
