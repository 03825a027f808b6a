# A loop to -3.
.name negative_bound
.hook on_forward
ICONST i0, -3
FOR i1, i0
ENDFOR
EXIT
