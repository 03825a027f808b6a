# error 1:1 the program has no instruction
.hook on_kd_step
