# A float between 0 and 8 by comparison; NaN does not pass.
.name float_guard
.hook on_forward
.map m array 8
CTXF f0, temperature
FCONST f1, 0.0
FCONST f2, 8.0
FLE i0, f1, f0
FLT i1, f0, f2
IAND i2, i0, i1
IF i2
  F2I i3, f0
  MINC i3, @m
ENDIF
EXIT
