# A model with more heads than the map has cells.
# dims: batch=2 heads=4 queries=3 keys=3
# run: attn=2x5x3x3
# observe: refused heads 5 4
.name more_heads
.hook on_attention
.map m array 4
VARG v0, attn
DIM i0, v0, 1
FOR i1, i0
  MINC i1, @m
ENDFOR
EXIT
