# A call in a branch counts as well.
# expect: E8-VERIFY:tier pc=3 line=10
# tier: inline
.name fisher_in_a_branch
.hook on_grad
.map m array 3 per_site
VARG v0, grad
CTXI i0, step
IF i0
  CALL_ASYNC v0, v0, fisher, @m
ENDIF
EXIT
