# A longer text than any before.
# dims: batch=2 heads=4 queries=3 keys=3
# run: attn=2x4x7x7
# observe: refused queries 7 3
.name longer_text
.hook on_attention
VARG v0, attn
ENTROPY f0, v0
EXIT
