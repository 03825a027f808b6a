# A slice of 8 rows has fewer when the view has fewer.
# expect: E8-VERIFY:bounds pc=5 line=10
.name slice_is_clamped
.hook on_forward
VARG v0, x
ICONST i0, 0
ICONST i1, 8
SLICE v1, v0, i0, i1
ICONST i2, 7
ROW v2, v1, i2
EXIT
