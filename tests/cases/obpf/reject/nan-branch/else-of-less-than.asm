# Not f < 8 includes NaN, which F2I makes 0: key 0 - 8.
# expect: E8-VERIFY:map-key pc=11 line=17
.name else_of_less_than
.hook on_forward
.map m array 8
VARG v0, x
MEAN f0, v0
FCONST f1, 8.0
FLT i0, f0, f1
IF i0
ELSE
  FCONST f2, 15.0
  FMIN f3, f0, f2
  F2I i1, f3
  ICONST i2, 8
  ISUB i1, i1, i2
  MINC i1, @m
ENDIF
EXIT
