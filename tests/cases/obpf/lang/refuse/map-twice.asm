# error 4:6 map m is declared twice
.hook on_kd_step
.map m array 1
.map m array 1
EXIT
