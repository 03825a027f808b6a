# A right was taken away.
# expect: E8-STALE
# rights: attach-probe read-trace
# changed: rights:
.name right_gone
.hook on_forward
VARG v0, x
SUM f0, v0
EXIT
