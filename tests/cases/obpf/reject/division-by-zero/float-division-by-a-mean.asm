# A mean may be 0.
# expect: E8-VERIFY:map-key pc=5 line=11
.name float_division_by_a_mean
.hook on_forward
.map m array 8
VARG v0, x
MEAN f1, v0
FCONST f0, 1.0
FDIV f2, f0, f1
F2I i0, f2
MINC i0, @m
EXIT
