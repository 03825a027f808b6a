# The body reads a size into its counter.
# expect: E8-VERIFY:counter pc=3 line=8
.name counter_as_a_size
.hook on_forward
VARG v0, x
DIM i1, v0, 0
FOR i0, i1
  DIM i0, v0, 1
ENDFOR
EXIT
