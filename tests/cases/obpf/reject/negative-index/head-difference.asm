# A difference of two heads.
# expect: E8-VERIFY:bounds pc=5 line=10
.name head_difference
.hook on_attention
VARG v0, attn
DIM i0, v0, 1
FOR i1, i0
  FOR i2, i0
    ISUB i3, i1, i2
    HEAD v1, v0, i3
  ENDFOR
ENDFOR
EXIT
