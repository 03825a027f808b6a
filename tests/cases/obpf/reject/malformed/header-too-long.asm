# The header's length points past the end.
# expect: E8-ENCODING
# patch: header_length=100000
.name header_too_long
.hook on_forward
ICONST i0, 1
IADD i1, i0, i0
FCONST f0, 1.5
EXIT
