# error 3:1 map m: a linear histogram needs low < high, got 2 and 1
.hook on_kd_step
.map m linear 4 low=2.0 high=1.0
EXIT
