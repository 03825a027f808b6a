# EXIT after EXIT.
# expect: E8-VERIFY:unreachable pc=1 line=6
.name exit_twice
.hook on_forward
EXIT
EXIT
EXIT
