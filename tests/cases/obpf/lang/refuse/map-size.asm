# error 3:14 '0' is no whole number from 1 to 262144
.hook on_kd_step
.map m array 0
EXIT
