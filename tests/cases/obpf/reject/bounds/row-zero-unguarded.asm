# Row 0 of a view that may be empty.
# expect: E8-VERIFY:bounds pc=2 line=7
.name row_zero_unguarded
.hook on_forward
VARG v0, x
ICONST i0, 0
ROW v1, v0, i0
EXIT
