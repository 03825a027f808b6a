# Smaller sizes are another contract too.
# expect: E8-STALE
# rights: attach-probe read-trace
# changed: dims:rows=8
.name smaller
.hook on_forward
VARG v0, x
SUM f0, v0
EXIT
