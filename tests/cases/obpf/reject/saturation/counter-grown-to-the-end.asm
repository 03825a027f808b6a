# A counter that a loop doubles ends anywhere.
# expect: E8-VERIFY:map-key pc=5 line=11
.name counter_grown_to_the_end
.hook on_forward
.map m array 8
ICONST i0, 1
ICONST i1, 100
FOR i2, i1
  IADD i0, i0, i0
ENDFOR
MINC i0, @m
EXIT
