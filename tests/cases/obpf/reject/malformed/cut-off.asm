# The last byte is missing.
# expect: E8-ENCODING
# patch: cut=1
.name cut_off
.hook on_forward
ICONST i0, 1
IADD i1, i0, i0
FCONST f0, 1.5
EXIT
