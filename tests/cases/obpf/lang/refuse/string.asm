# error 3:6 a string is not closed
.hook on_kd_step
.name "abc
EXIT
