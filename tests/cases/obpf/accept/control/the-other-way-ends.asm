# Written on the only way that goes on.
.name the_other_way_ends
.hook on_forward
.map m array 2
CTXI i0, step
IF i0
  ICONST i1, 1
ELSE
  EXIT
ENDIF
MINC i1, @m
EXIT
