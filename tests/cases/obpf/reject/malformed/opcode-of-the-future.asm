# An opcode just after the last.
# expect: E8-ENCODING
# patch: 1.op=0x82
.name opcode_of_the_future
.hook on_forward
ICONST i0, 1
IADD i1, i0, i0
FCONST f0, 1.5
EXIT
