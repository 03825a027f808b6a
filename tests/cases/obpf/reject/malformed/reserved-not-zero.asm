# The reserved half-word is not 0.
# expect: E8-ENCODING
# patch: reserved=1
.name reserved_not_zero
.hook on_forward
ICONST i0, 1
IADD i1, i0, i0
FCONST f0, 1.5
EXIT
