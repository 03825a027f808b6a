# Operand register 255.
# expect: E8-ENCODING
# patch: 1.a=255
.name register_255
.hook on_forward
ICONST i0, 1
IADD i1, i0, i0
FCONST f0, 1.5
EXIT
