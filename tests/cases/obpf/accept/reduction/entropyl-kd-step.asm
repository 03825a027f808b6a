# ENTROPYL of hs, kept in an array.
.name entropyl_kd_step
.hook on_kd_step
.map m array 1
VARG v0, hs
ENTROPYL f0, v0
ICONST i0, 0
MSET i0, f0, @m
EXIT
