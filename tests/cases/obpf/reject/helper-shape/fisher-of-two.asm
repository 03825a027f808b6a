# A second view for a helper of one.
# expect: E8-VERIFY:helper-shape pc=2 line=8
.name fisher_of_two
.hook on_grad
.map m array 3 per_site
VARG v0, grad
VARG v1, param
CALL_ASYNC v0, v1, fisher, @m
EXIT
