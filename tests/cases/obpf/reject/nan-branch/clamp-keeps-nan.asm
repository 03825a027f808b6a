# min(max(f, 3), 7) is NaN for NaN, and F2I makes it 0.
# expect: E8-VERIFY:map-key pc=9 line=15
.name clamp_keeps_nan
.hook on_forward
.map m array 8
VARG v0, x
MEAN f0, v0
FCONST f1, 3.0
FCONST f2, 7.0
FMAX f3, f0, f1
FMIN f3, f3, f2
F2I i0, f3
ICONST i1, 3
ISUB i0, i0, i1
MINC i0, @m
EXIT
