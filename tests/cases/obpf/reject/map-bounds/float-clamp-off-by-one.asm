# A float up to 8.0 as a key.
# expect: E8-VERIFY:map-key pc=7 line=13
.name float_clamp_off_by_one
.hook on_forward
.map m array 8
VARG v0, x
MEAN f0, v0
FCONST f1, 0.0
FCONST f2, 8.0
FMAX f0, f0, f1
FMIN f0, f0, f2
F2I i0, f0
MINC i0, @m
EXIT
