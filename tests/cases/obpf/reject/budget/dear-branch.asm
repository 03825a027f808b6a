# Two dear reductions on one way only.
# expect: E8-VERIFY:cost pc=7 line=12
.name dear_branch
.hook on_attention
VARG v0, attn
CTXI i0, step
IF i0
  KL f0, v0, v0
  KL f0, v0, v0
ELSE
ENDIF
EXIT
