# Ten thousand in one firing.
# observe: drops r=9744
.name ten_thousand
.hook on_forward
.map r ring 256
ICONST i0, 10000
FCONST f0, 1.0
FOR i1, i0
  EMIT i1, f0, @r
ENDFOR
EXIT
