# The last axis of attention.
.name last_keys
.hook on_attention
VARG v0, attn
DIM i0, v0, 3
FOR i1, i0
  COL v1, v0, i1
  SUM f0, v1
ENDFOR
EXIT
