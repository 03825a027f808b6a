# 2^63 - 1 rounds.
# expect: E8-VERIFY:trips pc=1 line=6
.name largest_constant
.hook on_forward
ICONST i0, 9223372036854775807
FOR i1, i0
ENDFOR
EXIT
