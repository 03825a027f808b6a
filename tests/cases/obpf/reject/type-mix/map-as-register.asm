# A map where a register belongs.
# expect: E8-SYNTAX line=6
.name map_as_register
.hook on_forward
.map m array 4
IADD i0, @m, @m
EXIT
