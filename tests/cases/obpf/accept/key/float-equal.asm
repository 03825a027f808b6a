# A float equal to 3.
.name float_equal
.hook on_forward
.map m array 4
CTXF f0, temperature
FCONST f1, 3.0
FEQ i0, f0, f1
IF i0
  F2I i1, f0
  MINC i1, @m
ENDIF
EXIT
