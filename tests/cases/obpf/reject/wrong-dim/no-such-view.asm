# A view that the hook does not have.
# expect: E8-VERIFY:argument pc=0 line=5
.name no_such_view
.hook on_forward
VARG v0, 3
EXIT
