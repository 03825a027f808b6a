# A FOR closed by ENDIF.
# expect: E8-VERIFY:structure pc=2 line=7
.name for_closed_by_endif
.hook on_forward
ICONST i0, 1
FOR i1, i0
ENDIF
EXIT
