# The same with <=.
# expect: E8-VERIFY:map-key pc=11 line=17
.name else_of_at_most
.hook on_forward
.map m array 8
VARG v0, x
MEAN f0, v0
FCONST f1, 4.0
FLE i0, f0, f1
IF i0
ELSE
  FCONST f2, 9.0
  FMIN f3, f0, f2
  F2I i1, f3
  ICONST i2, 4
  ISUB i1, i1, i2
  MINC i1, @m
ENDIF
EXIT
