# A loop that never runs.
.name no_round
.hook on_forward
ICONST i0, 0
FOR i1, i0
ENDFOR
EXIT
