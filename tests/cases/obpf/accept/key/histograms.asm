# Both kinds of histogram.
.name histograms
.hook on_forward
.map m log2 1 per_site
FCONST f0, 0.3
MHIST f0, @m
EXIT
