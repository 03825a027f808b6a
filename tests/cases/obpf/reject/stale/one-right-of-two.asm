# One of two rights was taken away.
# expect: E8-STALE
# rights: attach-probe read-trace
# changed: rights:attach-probe
.name one_right_of_two
.hook on_forward
VARG v0, x
SUM f0, v0
EXIT
