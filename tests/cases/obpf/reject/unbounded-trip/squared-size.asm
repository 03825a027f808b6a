# rows * rows rounds are too many, even when the body is empty.
# expect: E8-VERIFY:trips pc=5 line=10
.name squared_size
.hook on_forward
VARG v0, x
DIM i0, v0, 0
DIM i1, v0, 1
IMUL i2, i0, i1
IMUL i2, i2, i0
FOR i3, i2
ENDFOR
EXIT
