# error 3:8 no map kind 'stack'
.hook on_kd_step
.map m stack 4
EXIT
