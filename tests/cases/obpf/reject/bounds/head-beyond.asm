# Head 32 of at most 32.
# expect: E8-VERIFY:bounds pc=2 line=7
.name head_beyond
.hook on_attention
VARG v0, attn
ICONST i0, 32
HEAD v1, v0, i0
EXIT
