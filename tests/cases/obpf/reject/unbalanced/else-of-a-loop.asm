# ELSE inside a FOR.
# expect: E8-VERIFY:structure pc=2 line=7
.name else_of_a_loop
.hook on_forward
ICONST i0, 1
FOR i1, i0
ELSE
ENDFOR
EXIT
