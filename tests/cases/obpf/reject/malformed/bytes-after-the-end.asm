# Bytes after the checksum.
# expect: E8-ENCODING
# patch: append=16
.name bytes_after_the_end
.hook on_forward
ICONST i0, 1
IADD i1, i0, i0
FCONST f0, 1.5
EXIT
