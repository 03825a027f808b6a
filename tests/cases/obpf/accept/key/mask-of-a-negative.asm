# -3 & 7 is 5.
.name mask_of_a_negative
.hook on_forward
.map m array 8
ICONST i0, -3
ICONST i1, 7
IAND i0, i0, i1
MINC i0, @m
EXIT
