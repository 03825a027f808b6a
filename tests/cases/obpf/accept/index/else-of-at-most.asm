# n <= 3 came out false, so row 3 exists.
.name else_of_at_most
.hook on_forward
VARG v0, x
DIM i0, v0, 0
ICONST i1, 3
ILE i2, i0, i1
IF i2
ELSE
  ROW v1, v0, i1
ENDIF
EXIT
