# error 3:14 'f16' is no float register; they are f0 to f15
.hook on_kd_step
FADD f0, f1, f16
