# The bound of a loop was never written.
# expect: E8-VERIFY:undefined pc=0 line=5
.name loop_bound
.hook on_forward
FOR i1, i0
ENDFOR
EXIT
