# A key that is the step.
# expect: E8-VERIFY:map-key pc=2 line=8
.name set_by_step
.hook on_forward
.map m array 8
CTXI i0, step
FCONST f0, 1.0
MSET i0, f0, @m
EXIT
