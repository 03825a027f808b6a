# sqrt of what may be negative is NaN, so 0, so below 1.
# expect: E8-VERIFY:map-key pc=8 line=14
.name square_root_of_a_negative
.hook on_forward
.map m array 8
VARG v0, x
MEAN f0, v0
FCONST f1, 9.0
FMIN f0, f0, f1
FSQRT f2, f0
F2I i0, f2
ICONST i1, 1
ISUB i0, i0, i1
MINC i0, @m
EXIT
