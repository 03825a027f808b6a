# The last column, Python's way.
# expect: E8-VERIFY:bounds pc=2 line=7
.name column_minus_one
.hook on_forward
VARG v0, x
ICONST i0, -1
COL v1, v0, i0
EXIT
