# The guard lets exactly the 0 through.
# expect: E8-VERIFY:map-key pc=6 line=12
.name guard_the_wrong_way
.hook on_forward
.map m array 512
CTXI i0, step
CTXI i1, site
ICONST i2, 1
ILT i3, i1, i2
IF i3
  IMOD i4, i0, i1
  MINC i4, @m
ENDIF
EXIT
