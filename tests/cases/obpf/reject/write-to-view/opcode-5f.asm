# Bytecode with the unused opcode 0x5f among those of views.
# expect: E8-ENCODING
# patch: 1.op=0x5f
.name opcode_5f
.hook on_forward
VARG v0, x
DIM i0, v0, 0
EXIT
