# An integer constant with a fraction.
# expect: E8-SYNTAX line=6
.name fraction_in_integer_constant
.hook on_forward
.map m array 4
ICONST i0, 1.5
EXIT
