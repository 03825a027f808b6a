# A float register that nothing has written.
# expect: E8-VERIFY:undefined pc=0 line=5
.name float_never
.hook on_forward
FADD f1, f0, f0
EXIT
