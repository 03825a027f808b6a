# As many rounds as a huge tensor has NaNs.
# expect: E8-VERIFY:trips pc=2 line=7
.name counted_nonfinite
.hook on_attention
VARG v0, attn
COUNTNF i0, v0
FOR i1, i0
ENDFOR
EXIT
