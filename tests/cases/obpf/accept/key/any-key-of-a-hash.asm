# A hash takes any key.
.name any_key_of_a_hash
.hook on_forward
.map m hash 8
CTXI i0, step
INEG i0, i0
ICONST i1, -9223372036854775808
FCONST f0, 2.0
MADD i0, f0, @m
MSET i1, f0, @m
MMAX i0, f0, @m
MGET f1, i1, @m
EXIT
