# The counter of a loop is undefined after it.
# expect: E8-VERIFY:undefined pc=3 line=8
.name counter_after_loop
.hook on_forward
ICONST i0, 4
FOR i1, i0
ENDFOR
IADD i2, i1, i1
EXIT
