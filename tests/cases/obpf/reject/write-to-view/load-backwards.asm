# LD the other way round.
# expect: E8-SYNTAX line=9
.name load_backwards
.hook on_forward
.map m array 4
VARG v0, x
FCONST f0, 0.0
ICONST i0, 0
LD v0, f0, i0
EXIT
