# error 3:12 '1e999' is no number
.hook on_kd_step
FCONST f0, 1e999
