# error 3:8 '0' is no whole number from 1 to 1000000
.hook on_kd_step
.every 0
EXIT
