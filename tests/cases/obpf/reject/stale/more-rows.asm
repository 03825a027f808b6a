# The model's batches are larger now.
# expect: E8-STALE
# rights: attach-probe read-trace
# changed: dims:rows=8192
.name more_rows
.hook on_forward
VARG v0, x
SUM f0, v0
EXIT
