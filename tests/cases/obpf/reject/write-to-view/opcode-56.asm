# Bytecode with the unused opcode 0x56 among those of views.
# expect: E8-ENCODING
# patch: 1.op=0x56
.name opcode_56
.hook on_forward
VARG v0, x
DIM i0, v0, 0
EXIT
