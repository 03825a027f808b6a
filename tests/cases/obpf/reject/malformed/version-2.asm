# A program for the next instruction set.
# expect: E9-VERSION
# patch: version=2
.name version_2
.hook on_forward
ICONST i0, 1
IADD i1, i0, i0
FCONST f0, 1.5
EXIT
