# A round for each step so far.
# expect: E8-VERIFY:trips pc=1 line=6
.name step
.hook on_forward
CTXI i0, step
FOR i1, i0
ENDFOR
EXIT
