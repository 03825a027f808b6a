# No byte at all.
# expect: E8-ENCODING
# patch: keep=0
.name empty
.hook on_forward
ICONST i0, 1
IADD i1, i0, i0
FCONST f0, 1.5
EXIT
