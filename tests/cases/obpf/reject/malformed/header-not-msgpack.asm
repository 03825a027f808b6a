# The header is not msgpack.
# expect: E8-ENCODING
# patch: header=c1
.name header_not_msgpack
.hook on_forward
ICONST i0, 1
IADD i1, i0, i0
FCONST f0, 1.5
EXIT
