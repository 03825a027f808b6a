; the smallest program
.hook on_snapshot
EXIT
