# One round above the limit.
# expect: E8-VERIFY:trips pc=1 line=6
.name one_too_many
.hook on_forward
ICONST i0, 16777217
FOR i1, i0
ENDFOR
EXIT
