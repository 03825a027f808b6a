# step % site, and the first site is 0.
# expect: E8-VERIFY:map-key pc=3 line=9
.name modulo_of_a_site
.hook on_forward
.map m array 512
CTXI i0, step
CTXI i1, site
IMOD i2, i0, i1
MINC i2, @m
EXIT
