# The header is a list.
# expect: E8-ENCODING
# patch: header=90
.name header_a_list
.hook on_forward
ICONST i0, 1
IADD i1, i0, i0
FCONST f0, 1.5
EXIT
