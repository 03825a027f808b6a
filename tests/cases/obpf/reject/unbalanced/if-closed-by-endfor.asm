# An IF closed by ENDFOR.
# expect: E8-VERIFY:structure pc=2 line=7
.name if_closed_by_endfor
.hook on_forward
ICONST i0, 1
IF i0
ENDFOR
EXIT
