# A float sum of an integer.
# expect: E8-SYNTAX line=6
.name float_add_int
.hook on_forward
.map m array 4
FADD f0, i0, f1
EXIT
