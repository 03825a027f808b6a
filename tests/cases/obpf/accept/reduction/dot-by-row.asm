# DOT row by row.
.name dot_by_row
.hook on_kd_step
.map h log2 1
VARG v0, student
VARG v1, teacher
DIM i0, v0, 0
FOR i1, i0
  ROW v2, v0, i1
  ROW v3, v1, i1
  DOT f0, v2, v3
  MHIST f0, @h
ENDFOR
EXIT
