# A thousand into one.
# observe: drops r=999
.name a_thousand_into_one
.hook on_forward
.map r ring 1
ICONST i0, 1000
FCONST f0, 1.0
FOR i1, i0
  EMIT i1, f0, @r
ENDFOR
EXIT
