# No right at all.
# expect: E8-VERIFY:right pc=4 line=10
# rights:
.name cosine_without_rights
.hook on_forward
VARG v0, x
DIM i0, v0, 0
FOR i1, i0
  ROW v1, v0, i1
  CALL f0, v1, v1, cosine
ENDFOR
EXIT
