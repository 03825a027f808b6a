# A program without helpers needs no right.
# rights:
.name no_right_needed
.hook on_forward
VARG v0, x
SUM f0, v0
EXIT
