# A loop over a shape may not run at all, so what it writes may be missing.
# expect: E8-VERIFY:undefined pc=5 line=10
.name loop_may_not_run
.hook on_forward
VARG v0, x
DIM i0, v0, 0
FOR i1, i0
  ICONST i2, 1
ENDFOR
IADD i3, i2, i2
EXIT
