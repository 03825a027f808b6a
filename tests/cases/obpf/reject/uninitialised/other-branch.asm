# Written in the ELSE way only.
# expect: E8-VERIFY:undefined pc=5 line=10
.name other_branch
.hook on_forward
CTXI i0, step
IF i0
ELSE
  FCONST f1, 1.0
ENDIF
FADD f2, f1, f1
EXIT
