# From attention down to a number.
# dims: batch=4 heads=4 queries=16 keys=16
.name four_axes_down
.hook on_attention
VARG v0, attn
DIM i0, v0, 0
DIM i1, v0, 1
DIM i2, v0, 2
DIM i3, v0, 3
FOR i4, i0
  ROW v1, v0, i4
  FOR i5, i1
    ROW v2, v1, i5
    FOR i6, i2
      ROW v3, v2, i6
      FOR i7, i3
        LD f0, v3, i7
      ENDFOR
    ENDFOR
  ENDFOR
ENDFOR
EXIT
