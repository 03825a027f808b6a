# One flipped bit, checksum as it was.
# expect: E8-ENCODING
# patch: flip=-200
.name one_bit_in_the_code
.hook on_forward
ICONST i0, 1
IADD i1, i0, i0
FCONST f0, 1.5
EXIT
