# Two loops with one counter, one after the other.
.name two_in_a_row
.hook on_forward
VARG v0, x
DIM i0, v0, 0
FOR i1, i0
ENDFOR
DIM i0, v0, 1
FOR i1, i0
ENDFOR
EXIT
