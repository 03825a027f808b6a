# The second view of a helper is missing.
# expect: E8-VERIFY:undefined pc=5 line=10
.name helper_view
.hook on_forward
VARG v0, x
ICONST i0, 0
DIM i1, v0, 0
IF i1
  ROW v1, v0, i0
  CALL f0, v1, v2, cosine
ENDIF
EXIT
