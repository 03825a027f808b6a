# error 1:1 the program names no hook
EXIT
