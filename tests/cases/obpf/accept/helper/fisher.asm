# Diagonal Fisher of a parameter, every tenth step.
.name fisher
.hook on_grad
.map m array 3 per_site
CTXI i0, step
ICONST i1, 10
IMOD i2, i0, i1
IF i2
  EXIT
ENDIF
VARG v0, grad
CALL_ASYNC v0, v0, fisher, @m
EXIT
