# Logits and hidden states may have different rows.
# expect: E8-VERIFY:helper-shape pc=2 line=7
.name rkd_of_other_rows
.hook on_kd_step
VARG v0, student
VARG v1, hs
CALL f0, v0, v1, rkd_distance
EXIT
