# A constant that is NaN.
# expect: E8-ENCODING
# patch: 2.imm=nan
.name nan_constant
.hook on_forward
ICONST i0, 1
IADD i1, i0, i0
FCONST f0, 1.5
EXIT
