# A loop for each axis, and one more.
# expect: E8-VERIFY:nesting pc=10 line=16
# dims: batch=2 heads=2 queries=2 keys=2
.name five_over_attention
.hook on_attention
VARG v0, attn
DIM i10, v0, 0
DIM i11, v0, 1
DIM i12, v0, 2
DIM i13, v0, 3
ICONST i14, 2
FOR i0, i14
  FOR i1, i10
    FOR i2, i11
      FOR i3, i12
        FOR i4, i13
        ENDFOR
      ENDFOR
    ENDFOR
  ENDFOR
ENDFOR
EXIT
