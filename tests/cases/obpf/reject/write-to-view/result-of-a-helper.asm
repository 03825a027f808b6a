# A helper's result into a view.
# expect: E8-SYNTAX line=7
.name result_of_a_helper
.hook on_kd_step
.map m array 4
VARG v0, labels
CALL v0, v0, v0, cosine
EXIT
