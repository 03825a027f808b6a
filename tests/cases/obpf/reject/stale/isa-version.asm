# A certificate for the next instruction set.
# expect: E8-STALE
# rights: attach-probe read-trace
# changed: isa_version=2
.name isa_version
.hook on_forward
VARG v0, x
SUM f0, v0
EXIT
