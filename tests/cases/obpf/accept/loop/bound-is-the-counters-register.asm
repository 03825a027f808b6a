# The bound and the counter share a register.
.name bound_is_the_counters_register
.hook on_forward
.map m array 5
ICONST i0, 5
FOR i0, i0
  MINC i0, @m
ENDFOR
EXIT
