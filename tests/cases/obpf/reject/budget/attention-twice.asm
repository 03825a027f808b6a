# Five passes of 16 units an element over the largest attention.
# expect: E8-VERIFY:cost pc=3 line=8
.name attention_twice
.hook on_attention
VARG v0, attn
KL f0, v0, v0
KL f0, v0, v0
EXIT
