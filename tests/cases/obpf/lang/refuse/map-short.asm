# error 3:1 .map needs a name, a kind and a size
.hook on_kd_step
.map m array
EXIT
