# A reduction of a float.
# expect: E8-SYNTAX line=7
.name reduce_a_float
.hook on_forward
.map m array 4
FCONST f0, 1.0
SUM f1, f0
EXIT
