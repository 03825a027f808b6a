# Nor by another name.
# expect: E8-SYNTAX line=7
.name store_element
.hook on_forward
.map m array 4
VARG v0, x
STORE v0, i0, f0
EXIT
