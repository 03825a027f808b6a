# A comparison of an integer with a float.
# expect: E8-SYNTAX line=8
.name compare_mixed
.hook on_forward
.map m array 4
ICONST i0, 1
FCONST f0, 1.0
ILT i1, i0, f0
EXIT
