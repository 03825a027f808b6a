# A loop after EXIT.
# expect: E8-VERIFY:unreachable pc=2 line=7
.name loop_after_exit
.hook on_forward
ICONST i0, 1
EXIT
FOR i1, i0
ENDFOR
EXIT
