# The second axis of the labels.
# expect: E8-VERIFY:axis pc=1 line=6
.name axis_missing_of_labels
.hook on_kd_step
VARG v0, labels
DIM i0, v0, 1
EXIT
