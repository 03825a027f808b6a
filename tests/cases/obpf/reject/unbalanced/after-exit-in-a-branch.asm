# An instruction after EXIT in its block.
# expect: E8-VERIFY:unreachable pc=3 line=8
.name after_exit_in_a_branch
.hook on_forward
ICONST i0, 1
IF i0
  EXIT
  ICONST i1, 1
ENDIF
EXIT
