# The inner body writes the outer counter.
# expect: E8-VERIFY:counter pc=3 line=8
.name outer_counter_written
.hook on_forward
ICONST i15, 2
FOR i0, i15
  FOR i1, i15
    IMOV i0, i1
  ENDFOR
ENDFOR
EXIT
