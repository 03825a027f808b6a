# error 2:7 no hook 'on_backward'
.hook on_backward
EXIT
