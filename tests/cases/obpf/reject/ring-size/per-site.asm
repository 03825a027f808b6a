# A ring for each site.
# expect: E8-SYNTAX
# line: 6
.name per_site
.hook on_forward
.map r ring 4 per_site
EXIT
