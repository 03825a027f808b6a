# An index that is a float.
# expect: E8-SYNTAX line=8
.name float_index
.hook on_forward
.map m array 4
VARG v0, x
FCONST f0, 0.0
ROW v1, v0, f0
EXIT
