# on_snapshot hands out no view.
# expect: E8-VERIFY:argument pc=0 line=5
.name no_view_at_all
.hook on_snapshot
VARG v0, 0
EXIT
