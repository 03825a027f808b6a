# error 3:10 'f1' is no int register; they are i0 to i15
.hook on_kd_step
IADD i0, f1, i2
