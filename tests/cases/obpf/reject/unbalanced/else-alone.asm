# ELSE without IF.
# expect: E8-VERIFY:structure pc=0 line=5
.name else_alone
.hook on_forward
ELSE
  EXIT
