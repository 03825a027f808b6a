# A head numbered by the step.
# expect: E8-VERIFY:bounds pc=2 line=7
.name head_by_step
.hook on_attention
VARG v0, attn
CTXI i0, step
HEAD v1, v0, i0
EXIT
