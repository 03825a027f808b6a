# A loop over a float.
# expect: E8-SYNTAX line=7
.name float_bound
.hook on_forward
.map m array 4
FCONST f0, 4.0
FOR i0, f0
ENDFOR
EXIT
