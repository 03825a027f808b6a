# A row for a helper of matrices.
# expect: E8-VERIFY:helper-shape pc=4 line=10
.name mahalanobis_of_a_row
.hook on_forward
.map m array 4 per_site
VARG v0, x
DIM i0, v0, 0
FOR i1, i0
  ROW v0, v0, i1
  CALL_ASYNC v0, v0, mahalanobis, @m
  EXIT
ENDFOR
EXIT
