"""The recursive learner: runs windows of teacher and student, and owns every parameter."""
