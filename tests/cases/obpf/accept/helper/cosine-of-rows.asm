# cosine of two rows.
.name cosine_of_rows
.hook on_kd_step
.map h linear 20 low=-1.0 high=1.0
VARG v0, student
VARG v1, teacher
DIM i0, v0, 0
FOR i1, i0
  ROW v2, v0, i1
  ROW v3, v1, i1
  CALL f0, v2, v3, cosine
  MHIST f0, @h
ENDFOR
EXIT
