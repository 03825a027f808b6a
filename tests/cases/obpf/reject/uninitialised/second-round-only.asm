# The first round of a loop would read what only its end writes.
# expect: E8-VERIFY:undefined pc=2 line=7
.name second_round_only
.hook on_forward
ICONST i0, 4
FOR i1, i0
  IADD i2, i3, i3
  ICONST i3, 1
ENDFOR
EXIT
