# error 3:10 no view of the hook 'x'
.hook on_kd_step
VARG v0, x
