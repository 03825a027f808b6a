# A certificate for an older instruction set.
# expect: E8-STALE
# rights: attach-probe read-trace
# changed: isa_version=0
.name older_isa_version
.hook on_forward
VARG v0, x
SUM f0, v0
EXIT
