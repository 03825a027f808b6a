# Only the magic is left.
# expect: E8-ENCODING
# patch: keep=4
.name cut_to_the_magic
.hook on_forward
ICONST i0, 1
IADD i1, i0, i0
FCONST f0, 1.5
EXIT
