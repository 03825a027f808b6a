# A per-site array has its site already; its key is within the row.
# expect: E8-VERIFY:map-key pc=1 line=7
.name per_site_by_site
.hook on_forward
.map m array 8 per_site
CTXI i0, site
MINC i0, @m
EXIT
