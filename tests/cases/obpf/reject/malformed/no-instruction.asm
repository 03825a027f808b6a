# A header and no code.
# expect: E8-ENCODING
# patch: code=none
.name no_instruction
.hook on_forward
ICONST i0, 1
IADD i1, i0, i0
FCONST f0, 1.5
EXIT
