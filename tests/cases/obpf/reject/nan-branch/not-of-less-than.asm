# The negation of a comparison says less than its opposite.
# expect: E8-VERIFY:map-key pc=12 line=18
.name not_of_less_than
.hook on_forward
.map m array 8
VARG v0, x
MEAN f0, v0
FCONST f1, 2.0
FCONST f2, 6.0
FMIN f3, f0, f2
FLT i0, f3, f1
ICONST i1, 0
IEQ i2, i0, i1
IF i2
  F2I i3, f3
  ICONST i4, 2
  ISUB i3, i3, i4
  MINC i3, @m
ENDIF
EXIT
