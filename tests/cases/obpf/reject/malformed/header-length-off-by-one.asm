# The header's length is one short.
# expect: E8-ENCODING
# patch: header_length-=1
.name header_length_off_by_one
.hook on_forward
ICONST i0, 1
IADD i1, i0, i0
FCONST f0, 1.5
EXIT
