# Helper 99.
# expect: E8-VERIFY:helper pc=1 line=6
.name no_such_helper
.hook on_forward
VARG v0, x
CALL f0, v0, v0, 99
EXIT
