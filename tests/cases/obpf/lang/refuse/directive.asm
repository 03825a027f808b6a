# error 3:1 no directive .stack
.hook on_kd_step
.stack 5
EXIT
