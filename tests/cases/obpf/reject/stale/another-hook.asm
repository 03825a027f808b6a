# The same views at another kind of hook.
# expect: E8-STALE
# rights: attach-probe read-trace
# changed: hook:on_grad
.name another_hook
.hook on_forward
VARG v0, x
SUM f0, v0
EXIT
