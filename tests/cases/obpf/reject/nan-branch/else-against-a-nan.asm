# Not i < t holds for every i when t is NaN.
# expect: E8-VERIFY:map-key pc=14 line=20
.name else_against_a_nan
.hook on_forward
.map m array 4
CTXI i0, site
ICONST i1, 8
IMOD i0, i0, i1
I2F f0, i0
CTXF f1, temperature
FCONST f2, 4.0
FMAX f1, f1, f2
FMIN f1, f1, f2
FLT i2, f0, f1
IF i2
ELSE
  F2I i3, f0
  ICONST i4, 4
  ISUB i3, i3, i4
  MINC i3, @m
ENDIF
EXIT
