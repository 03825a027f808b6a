# error 3:18 no helper number 'cosin'
.hook on_kd_step
CALL f0, v0, v1, cosin
