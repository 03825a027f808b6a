# Column 5 without asking how wide the view is.
# expect: E8-VERIFY:bounds pc=2 line=7
.name column_fixed
.hook on_forward
VARG v0, x
ICONST i0, 5
COL v1, v0, i0
EXIT
