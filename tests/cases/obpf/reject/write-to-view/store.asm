# There is no store.
# expect: E8-SYNTAX line=9
.name store
.hook on_forward
.map m array 4
VARG v0, x
FCONST f0, 0.0
ICONST i0, 0
ST v0, i0, f0
EXIT
