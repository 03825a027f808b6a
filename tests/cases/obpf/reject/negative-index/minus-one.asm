# The last row, Python's way.
# expect: E8-VERIFY:bounds pc=2 line=7
.name minus_one
.hook on_forward
VARG v0, x
ICONST i0, -1
ROW v1, v0, i0
EXIT
