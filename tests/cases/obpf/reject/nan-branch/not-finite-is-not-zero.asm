# Not finite: NaN becomes 0, infinity 2^63-1.
# expect: E8-VERIFY:map-key pc=6 line=12
.name not_finite_is_not_zero
.hook on_forward
.map m array 8
VARG v0, x
ABSMAX f0, v0
ISFINITE i0, f0
IF i0
ELSE
  F2I i1, f0
  MINC i1, @m
ENDIF
EXIT
