# A round for each firing so far.
# expect: E8-VERIFY:trips pc=1 line=6
.name firing
.hook on_forward
CTXI i0, firing
FOR i1, i0
ENDFOR
EXIT
