# error 19:1 more than 16 maps
.hook on_kd_step
.map m0 array 1
.map m1 array 1
.map m2 array 1
.map m3 array 1
.map m4 array 1
.map m5 array 1
.map m6 array 1
.map m7 array 1
.map m8 array 1
.map m9 array 1
.map m10 array 1
.map m11 array 1
.map m12 array 1
.map m13 array 1
.map m14 array 1
.map m15 array 1
.map m16 array 1
EXIT
