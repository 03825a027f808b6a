# Copies of the hidden states for each row.
# expect: E8-VERIFY:cost pc=3 line=9
.name queue_in_a_loop
.hook on_kd_step
.map m array 7 per_site
VARG v0, hs
VARG v1, ht
DIM i0, v0, 0
FOR i1, i0
  CALL_ASYNC v0, v1, cka, @m
ENDFOR
EXIT
