# |step - 10| has none either.
# expect: E8-VERIFY:trips pc=4 line=9
.name absolute_value
.hook on_forward
CTXI i0, step
ICONST i1, 10
ISUB i0, i0, i1
IABS i0, i0
FOR i2, i0
ENDFOR
EXIT
