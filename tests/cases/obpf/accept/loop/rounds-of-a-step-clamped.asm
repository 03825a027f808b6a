# min(step, 100) rounds.
.name rounds_of_a_step_clamped
.hook on_forward
CTXI i0, step
ICONST i1, 100
IMIN i0, i0, i1
FOR i2, i0
ENDFOR
EXIT
