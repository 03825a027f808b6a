# Every second element, to twice the length.
# expect: E8-VERIFY:bounds pc=5 line=10
.name element_twice_the_counter
.hook on_kd_step
VARG v0, labels
DIM i0, v0, 0
ICONST i2, 2
FOR i1, i0
  IMUL i3, i1, i2
  LD f0, v0, i3
ENDFOR
EXIT
