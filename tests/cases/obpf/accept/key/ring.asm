# A ring takes any tag.
.name ring
.hook on_forward
.map m ring 4
ICONST i0, -9223372036854775808
FCONST f0, -inf
EMIT i0, f0, @m
EXIT
