# A view register that nothing has written.
# expect: E8-VERIFY:undefined pc=0 line=5
.name view_never
.hook on_forward
SUM f0, v0
EXIT
