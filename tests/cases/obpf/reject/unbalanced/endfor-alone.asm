# ENDFOR without FOR.
# expect: E8-VERIFY:structure pc=0 line=5
.name endfor_alone
.hook on_forward
ENDFOR
EXIT
