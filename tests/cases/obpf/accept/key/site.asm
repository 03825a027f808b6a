# The site of a 512-cell array.
.name site
.hook on_forward
.map m array 512
CTXI i0, site
MINC i0, @m
EXIT
