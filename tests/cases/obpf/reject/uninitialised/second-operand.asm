# Only the second operand is missing.
# expect: E8-VERIFY:undefined pc=1 line=6
.name second_operand
.hook on_forward
ICONST i0, 1
IADD i1, i0, i2
EXIT
