# inf - inf is NaN, so its integer is 0 and not in 5 to 9.
# expect: E8-VERIFY:bounds pc=5 line=10
.name infinity_minus_infinity
.hook on_forward
VARG v0, x
DIM i9, v0, 0
SUMSQ f0, v0
FSUB f1, f0, f0
F2I i0, f1
ROW v1, v0, i0
EXIT
