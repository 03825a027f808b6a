# The program ends with ENDIF.
# expect: E8-VERIFY:structure pc=3 line=8
.name ends_with_endif
.hook on_forward
ICONST i0, 1
IF i0
  EXIT
ENDIF
