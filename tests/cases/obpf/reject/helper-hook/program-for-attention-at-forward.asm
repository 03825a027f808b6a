# A program that needs attention weights where there are none.
# expect: E8-VERIFY:hook pc=0 line=6
# attach: on_forward
.name program_for_attention_at_forward
.hook on_attention
VARG v0, attn
ENTROPY f0, v0
EXIT
