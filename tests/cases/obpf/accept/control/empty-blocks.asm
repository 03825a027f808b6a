# Blocks with nothing in them.
.name empty_blocks
.hook on_forward
CTXI i0, step
IF i0
ENDIF
IF i0
ELSE
ENDIF
ICONST i2, 3
FOR i1, i2
ENDFOR
EXIT
