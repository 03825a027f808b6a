# The largest label's own element.
.name argmax_guarded
.hook on_kd_step
VARG v0, labels
DIM i0, v0, 0
IF i0
  ARGMAX i1, v0
  LD f0, v0, i1
ENDIF
EXIT
