# The counter's register held a value before the loop; it does not come back.
# expect: E8-VERIFY:undefined pc=4 line=9
.name counter_held_before
.hook on_forward
ICONST i0, 4
ICONST i1, 7
FOR i1, i0
ENDFOR
IADD i2, i1, i1
EXIT
