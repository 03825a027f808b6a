# Heads counted by the queries.
# expect: E8-VERIFY:bounds pc=3 line=8
.name heads_by_queries
.hook on_attention
VARG v0, attn
DIM i0, v0, 2
FOR i1, i0
  HEAD v1, v0, i1
ENDFOR
EXIT
