# An integer result into a float register.
# expect: E8-SYNTAX line=6
.name int_result_in_float
.hook on_forward
.map m array 4
ICONST f0, 1
EXIT
