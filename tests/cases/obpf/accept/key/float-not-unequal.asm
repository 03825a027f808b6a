# Not unequal to 3.
.name float_not_unequal
.hook on_forward
.map m array 4
CTXF f0, temperature
FCONST f1, 3.0
FNE i0, f0, f1
IF i0
ELSE
  F2I i1, f0
  MINC i1, @m
ENDIF
EXIT
