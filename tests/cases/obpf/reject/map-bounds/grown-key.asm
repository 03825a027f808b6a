# A key that a loop moves past the end.
# expect: E8-VERIFY:map-key pc=4 line=10
.name grown_key
.hook on_forward
.map m array 8
ICONST i0, 0
ICONST i1, 9
ICONST i2, 1
FOR i3, i1
  MINC i0, @m
  IADD i0, i0, i2
ENDFOR
EXIT
