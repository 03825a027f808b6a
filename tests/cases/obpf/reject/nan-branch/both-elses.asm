# Neither below 4 nor above 8: a number in between, or NaN.
# expect: E8-VERIFY:map-key pc=12 line=18
.name both_elses
.hook on_forward
.map m array 5
VARG v0, x
MEAN f0, v0
FCONST f1, 4.0
FCONST f2, 8.0
FLT i0, f0, f1
FLT i1, f2, f0
IOR i2, i0, i1
IF i2
ELSE
  F2I i3, f0
  ICONST i4, 4
  ISUB i3, i3, i4
  MINC i3, @m
ENDIF
EXIT
