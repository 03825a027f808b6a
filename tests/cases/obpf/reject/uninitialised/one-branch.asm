# Written in one way of an IF, read after it.
# expect: E8-VERIFY:undefined pc=4 line=9
.name one_branch
.hook on_forward
CTXI i0, step
IF i0
  ICONST i1, 1
ENDIF
IADD i2, i1, i1
EXIT
