# CKA outside the step.
.name cka
.hook on_kd_step
.map m array 7 per_site fields=xy+xx+yy+batches+rows+short+nonfinite
VARG v0, hs
VARG v1, ht
CALL_ASYNC v0, v1, cka, @m
EXIT
