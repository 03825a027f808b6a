# A move from a float.
# expect: E8-SYNTAX line=7
.name move_a_float_into_a_view
.hook on_forward
.map m array 4
FCONST f0, 1.0
VMOV v0, f0
EXIT
