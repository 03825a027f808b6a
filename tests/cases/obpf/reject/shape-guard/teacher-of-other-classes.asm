# A teacher with other classes than the student.
# dims: rows=8 classes=4 hidden_rows=8 student_width=4 teacher_width=4
# run: student=8x4 teacher=8x3 labels=8 hs=8x4 ht=8x4
# observe: refused classes 3 4
.name teacher_of_other_classes
.hook on_kd_step
VARG v0, student
VARG v1, teacher
KLL f0, v0, v1
EXIT
