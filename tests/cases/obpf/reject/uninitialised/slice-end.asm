# The end of a slice is an integer register too.
# expect: E8-VERIFY:undefined pc=2 line=7
.name slice_end
.hook on_forward
VARG v0, x
ICONST i0, 0
SLICE v1, v0, i0, i1
EXIT
