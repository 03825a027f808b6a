# The last instruction is in a block.
# expect: E8-VERIFY:structure pc=1 line=6
.name ends_in_a_block
.hook on_forward
ICONST i0, 1
IF i0
  ICONST i1, 1
  EXIT
