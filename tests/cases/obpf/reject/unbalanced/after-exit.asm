# An instruction after EXIT.
# expect: E8-VERIFY:unreachable pc=1 line=6
.name after_exit
.hook on_forward
EXIT
ICONST i0, 1
EXIT
