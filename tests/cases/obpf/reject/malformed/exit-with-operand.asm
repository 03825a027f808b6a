# EXIT with an operand.
# expect: E8-ENCODING
# patch: 3.d=1
.name exit_with_operand
.hook on_forward
ICONST i0, 1
IADD i1, i0, i0
FCONST f0, 1.5
EXIT
