# A view register with one axis on one way and two on the other.
# expect: E8-VERIFY:undefined pc=8 line=13
.name rank_by_branch
.hook on_forward
VARG v0, x
CTXI i9, step
DIM i0, v0, 0
VMOV v1, v0
IF i0
  ICONST i1, 0
  ROW v1, v0, i1
ENDIF
SUM f0, v1
EXIT
