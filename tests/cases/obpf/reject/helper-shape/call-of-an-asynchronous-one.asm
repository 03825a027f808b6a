# CALL of a helper that runs outside the step.
# expect: E8-VERIFY:helper pc=2 line=7
.name call_of_an_asynchronous_one
.hook on_kd_step
VARG v0, hs
VARG v1, ht
CALL f0, v0, v1, cka
EXIT
