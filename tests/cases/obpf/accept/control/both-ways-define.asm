# Written on both ways.
.name both_ways_define
.hook on_forward
.map m array 2
CTXI i0, step
IF i0
  ICONST i1, 1
ELSE
  ICONST i1, 0
ENDIF
MINC i1, @m
EXIT
