# error 3:10 no map @m
.hook on_kd_step
MINC i0, @m
