# Only what is emitted is dropped.
# times: 10
# observe: drops r=3
.name in_a_branch
.hook on_forward
.map r ring 2
CTXI i0, step
FCONST f0, 1.0
ICONST i1, 2
IMOD i2, i0, i1
IF i2
  EMIT i0, f0, @r
ENDIF
EXIT
