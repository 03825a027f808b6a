# A float constant into an integer register.
# expect: E8-SYNTAX line=6
.name float_constant_in_int
.hook on_forward
.map m array 4
FCONST i0, 1.5
EXIT
