# An integer sum of a float.
# expect: E8-SYNTAX line=6
.name int_add_float
.hook on_forward
.map m array 4
IADD i0, f0, i1
EXIT
