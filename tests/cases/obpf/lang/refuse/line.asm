# error 3:7 '-1' is no whole number from 0 to 2147483647
.hook on_kd_step
.line -1
EXIT
