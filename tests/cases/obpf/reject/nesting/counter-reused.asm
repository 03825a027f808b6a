# An inner loop with the counter of the outer one.
# expect: E8-VERIFY:counter pc=2 line=7
.name counter_reused
.hook on_forward
ICONST i15, 2
FOR i0, i15
  FOR i0, i15
  ENDFOR
ENDFOR
EXIT
