# error 3:12 'nan' is no number
.hook on_kd_step
FCONST f0, nan
