# A loop of four rounds defines what it writes.
.name defined_by_a_sure_loop
.hook on_forward
ICONST i0, 4
FOR i1, i0
  IMOV i2, i1
ENDFOR
IADD i3, i2, i2
EXIT
