# Both ways of an IF end the firing.
# expect: E8-VERIFY:unreachable pc=6 line=11
.name after_both_ways_end
.hook on_forward
ICONST i0, 1
IF i0
  EXIT
ELSE
  EXIT
ENDIF
ICONST i1, 1
EXIT
