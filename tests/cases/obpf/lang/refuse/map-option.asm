# error 3:16 no map option 'shared'
.hook on_kd_step
.map m array 1 shared
EXIT
