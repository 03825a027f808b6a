# A gradient and a parameter of different shape.
# dims: rows=8 cols=4
# run: grad=8x4 param=4x4
# observe: refused rows 4 8
.name parameter_of_another_shape
.hook on_grad
VARG v0, grad
VARG v1, param
DOT f0, v0, v1
EXIT
