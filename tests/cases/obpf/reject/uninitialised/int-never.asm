# An integer register that nothing has written.
# expect: E8-VERIFY:undefined pc=0 line=5
.name int_never
.hook on_forward
IADD i1, i0, i0
EXIT
