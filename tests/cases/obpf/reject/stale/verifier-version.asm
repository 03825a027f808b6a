# A certificate by the next verifier.
# expect: E8-STALE
# rights: attach-probe read-trace
# changed: verifier_version=2
.name verifier_version
.hook on_forward
VARG v0, x
SUM f0, v0
EXIT
