# A float below 0 as an index.
# expect: E8-VERIFY:bounds pc=6 line=11
.name from_a_float
.hook on_kd_step
VARG v0, labels
DIM i0, v0, 0
MIN f0, v0
F2I i1, f0
ILT i2, i1, i0
IF i2
  LD f1, v0, i1
ENDIF
EXIT
