# A certificate by an older verifier.
# expect: E8-STALE
# rights: attach-probe read-trace
# changed: verifier_version=0
.name older_verifier
.hook on_forward
VARG v0, x
SUM f0, v0
EXIT
