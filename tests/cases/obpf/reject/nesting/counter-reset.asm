# The body sets its counter back: it would never end.
# expect: E8-VERIFY:counter pc=2 line=7
.name counter_reset
.hook on_forward
ICONST i15, 2
FOR i0, i15
  ICONST i0, 0
ENDFOR
EXIT
