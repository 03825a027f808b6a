# error 3:1 no opcode 'FADDD'
.hook on_kd_step
FADDD f0, f1, f2
