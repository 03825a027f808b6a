# A loop over the heads.
.name heads
.hook on_attention
.map m array 32 per_site
VARG v0, attn
DIM i0, v0, 1
FOR i1, i0
  HEAD v1, v0, i1
  ENTROPY f0, v1
  MADD i1, f0, @m
ENDFOR
EXIT
