# The program was changed after it was verified.
# expect: E8-STALE
# rights: attach-probe read-trace
# changed: bytes=1
.name one_instruction_changed
.hook on_forward
VARG v0, x
SUM f0, v0
EXIT
