# A program for version 0.
# expect: E9-VERSION
# patch: version=0
.name version_0
.hook on_forward
ICONST i0, 1
IADD i1, i0, i0
FCONST f0, 1.5
EXIT
