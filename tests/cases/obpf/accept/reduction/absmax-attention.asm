# ABSMAX of attn, kept in an array.
.name absmax_attention
.hook on_attention
.map m array 1
VARG v0, attn
ABSMAX f0, v0
ICONST i0, 0
MSET i0, f0, @m
EXIT
