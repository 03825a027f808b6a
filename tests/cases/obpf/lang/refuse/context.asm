# error 3:10 no integer of the firing 'temperature'
.hook on_kd_step
CTXI i0, temperature
