# The condition of an IF was never written.
# expect: E8-VERIFY:undefined pc=0 line=5
.name condition
.hook on_forward
IF i0
ENDIF
EXIT
