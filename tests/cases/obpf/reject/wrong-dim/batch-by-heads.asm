# The batch counted by the heads.
# expect: E8-VERIFY:bounds pc=3 line=8
.name batch_by_heads
.hook on_attention
VARG v0, attn
DIM i0, v0, 1
FOR i1, i0
  ROW v1, v0, i1
ENDFOR
EXIT
