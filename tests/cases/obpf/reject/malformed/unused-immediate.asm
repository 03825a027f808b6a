# An immediate in an opcode without one.
# expect: E8-ENCODING
# patch: 1.imm=1
.name unused_immediate
.hook on_forward
ICONST i0, 1
IADD i1, i0, i0
FCONST f0, 1.5
EXIT
