# As many rounds as a sum says.
# expect: E8-VERIFY:trips pc=3 line=8
.name from_a_float
.hook on_forward
VARG v0, x
SUM f0, v0
F2I i0, f0
FOR i1, i0
ENDFOR
EXIT
