# A FOR that is never closed.
# expect: E8-VERIFY:structure pc=1 line=6
.name for_open
.hook on_forward
ICONST i0, 1
FOR i1, i0
  EXIT
