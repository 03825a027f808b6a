# cosine takes vectors.
# expect: E8-VERIFY:helper-shape pc=1 line=6
.name cosine_of_matrices
.hook on_forward
VARG v0, x
CALL f0, v0, v0, cosine
EXIT
