# ENDIF without IF.
# expect: E8-VERIFY:structure pc=0 line=5
.name endif_alone
.hook on_forward
ENDIF
EXIT
