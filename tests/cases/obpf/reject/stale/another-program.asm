# The certificate of another program.
# expect: E8-STALE
# rights: attach-probe read-trace
# changed: program=0
.name another_program
.hook on_forward
VARG v0, x
SUM f0, v0
EXIT
