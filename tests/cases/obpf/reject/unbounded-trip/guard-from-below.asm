# The guard bounds it on the wrong side.
# expect: E8-VERIFY:trips pc=4 line=9
.name guard_from_below
.hook on_forward
CTXI i0, step
ICONST i1, 100
ILT i2, i1, i0
IF i2
  FOR i3, i0
  ENDFOR
ENDIF
EXIT
