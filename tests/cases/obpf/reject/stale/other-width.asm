# Another width.
# expect: E8-STALE
# rights: attach-probe read-trace
# changed: dims:width=2048
.name other_width
.hook on_forward
VARG v0, x
SUM f0, v0
EXIT
