# A ring of 65,537 entries of four cells.
# expect: E8-SYNTAX
# line: 6
.name too_many_entries
.hook on_forward
.map r ring 65537
EXIT
