# Labels that are not one for each row of the logits.
# dims: rows=8 classes=4 hidden_rows=8 student_width=4 teacher_width=4
# run: student=8x4 teacher=8x4 labels=7 hs=8x4 ht=8x4
# observe: refused rows 7 8
.name labels_of_other_rows
.hook on_kd_step
VARG v0, student
VARG v1, labels
DIM i0, v0, 0
FOR i1, i0
  LD f0, v1, i1
ENDFOR
EXIT
