# Sixteen cells for a model of 32 heads.
# expect: E8-VERIFY:map-key pc=3 line=9
.name heads_of_this_model
.hook on_attention
.map m array 16 per_site
VARG v0, attn
DIM i0, v0, 1
FOR i1, i0
  MINC i1, @m
ENDFOR
EXIT
