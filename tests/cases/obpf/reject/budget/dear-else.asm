# The same on the other way.
# expect: E8-VERIFY:cost pc=7 line=12
.name dear_else
.hook on_attention
VARG v0, attn
CTXI i0, step
IF i0
ELSE
  KL f0, v0, v0
  KL f0, v0, v0
ENDIF
EXIT
