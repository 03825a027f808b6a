# Both ways end, and so does the program.
.name both_ways_end
.hook on_forward
CTXI i0, step
IF i0
  EXIT
ELSE
  EXIT
ENDIF
EXIT
