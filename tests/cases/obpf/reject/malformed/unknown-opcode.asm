# An opcode that does not exist.
# expect: E8-ENCODING
# patch: 1.op=0x99
.name unknown_opcode
.hook on_forward
ICONST i0, 1
IADD i1, i0, i0
FCONST f0, 1.5
EXIT
