# A ring of no entry.
# expect: E8-SYNTAX
# line: 6
.name no_entry
.hook on_forward
.map r ring 0
ICONST i0, 0
EXIT
