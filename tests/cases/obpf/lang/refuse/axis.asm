# error 3:13 '4' is no whole number from 0 to 3
.hook on_kd_step
DIM i0, v0, 4
