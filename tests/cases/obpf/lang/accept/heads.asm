# entropy of each head, and a helper
.name heads
.hook on_attention:student/**
.map heads array 128 per_site label="head"
    VARG v0, attn
    DIM i0, v0, 1
    FOR i1, i0
      HEAD v1, v0, i1
      ENTROPY f0, v1
      MADD i1, f0, @heads
    ENDFOR
    EXIT
