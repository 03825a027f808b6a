# A finite number may still be 1e300.
# expect: E8-VERIFY:map-key pc=5 line=11
.name finite_is_not_small
.hook on_forward
.map m array 8
VARG v0, x
MEAN f0, v0
ISFINITE i0, f0
IF i0
  F2I i1, f0
  MINC i1, @m
ENDIF
EXIT
