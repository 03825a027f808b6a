# f != f is true for NaN only; nothing bounds f where it is false.
# expect: E8-VERIFY:map-key pc=6 line=12
.name unequal_to_itself
.hook on_forward
.map m array 8
VARG v0, x
MEAN f0, v0
FNE i0, f0, f0
IF i0
ELSE
  F2I i1, f0
  MINC i1, @m
ENDIF
EXIT
