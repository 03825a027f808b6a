# An IF that is never closed.
# expect: E8-VERIFY:structure pc=1 line=6
.name if_open
.hook on_forward
ICONST i0, 1
IF i0
  EXIT
