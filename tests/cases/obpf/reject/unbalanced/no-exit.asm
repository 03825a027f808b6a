# The program does not end with EXIT.
# expect: E8-VERIFY:structure pc=0 line=5
.name no_exit
.hook on_forward
ICONST i0, 1
