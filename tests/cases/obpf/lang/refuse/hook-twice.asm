# error 3:1 .hook is given twice
.hook on_kd_step
.hook on_prune
EXIT
