# cosine is of tier inline.
# tier: inline
.name inline
.hook on_kd_step
VARG v0, labels
CALL f0, v0, v0, cosine
EXIT
