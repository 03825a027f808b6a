# The body writes its counter.
# expect: E8-VERIFY:counter pc=2 line=7
.name counter_written
.hook on_forward
ICONST i15, 2
FOR i0, i15
  IADD i0, i0, i15
ENDFOR
EXIT
