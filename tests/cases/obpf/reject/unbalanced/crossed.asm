# Blocks that cross.
# expect: E8-VERIFY:structure pc=3 line=8
.name crossed
.hook on_forward
ICONST i0, 1
FOR i1, i0
  IF i0
  ENDFOR
ENDIF
EXIT
