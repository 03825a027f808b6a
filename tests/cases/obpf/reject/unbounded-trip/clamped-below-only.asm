# max(step, 8) has no upper bound.
# expect: E8-VERIFY:trips pc=3 line=8
.name clamped_below_only
.hook on_forward
CTXI i0, step
ICONST i1, 8
IMAX i0, i0, i1
FOR i2, i0
ENDFOR
EXIT
