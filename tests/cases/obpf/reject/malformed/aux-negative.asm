# A negative aux.
# expect: E8-ENCODING
# patch: 1.aux=-1
.name aux_negative
.hook on_forward
ICONST i0, 1
IADD i1, i0, i0
FCONST f0, 1.5
EXIT
