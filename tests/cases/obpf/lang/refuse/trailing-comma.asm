# error 3:16 operands are separated by single commas
.hook on_kd_step
FADD f0, f1, f2,
