# Integer register 16.
# expect: E8-ENCODING
# patch: 1.d=16
.name register_16
.hook on_forward
ICONST i0, 1
IADD i1, i0, i0
FCONST f0, 1.5
EXIT
