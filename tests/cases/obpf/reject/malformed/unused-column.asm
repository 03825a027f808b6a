# A column that the opcode does not use is not 0.
# expect: E8-ENCODING
# patch: 0.b=1
.name unused_column
.hook on_forward
ICONST i0, 1
IADD i1, i0, i0
FCONST f0, 1.5
EXIT
