# error 3:10 FADD has 3 operands, got 2
.hook on_kd_step
FADD f0, f1
