# A program that does nothing.
.name nothing
.hook on_forward
EXIT
