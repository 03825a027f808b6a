# error 3:6 'v8' is no view register; they are v0 to v7
.hook on_kd_step
VARG v8, student
