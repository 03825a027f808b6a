# An in-place sum.
# expect: E8-SYNTAX line=7
.name add_to_a_view
.hook on_forward
.map m array 4
VARG v0, x
FADD v0, v0, v0
EXIT
