# Two ELSE of one IF.
# expect: E8-VERIFY:structure pc=3 line=8
.name two_elses
.hook on_forward
ICONST i0, 1
IF i0
ELSE
ELSE
ENDIF
EXIT
