# One ENDIF too many.
# expect: E8-VERIFY:structure pc=3 line=8
.name one_endif_too_many
.hook on_forward
ICONST i0, 1
IF i0
ENDIF
ENDIF
EXIT
