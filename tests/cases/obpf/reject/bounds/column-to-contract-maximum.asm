# A loop to the largest size of the contract: a batch may be smaller.
# expect: E8-VERIFY:bounds pc=3 line=8
.name column_to_contract_maximum
.hook on_forward
VARG v0, x
ICONST i0, 1024
FOR i1, i0
  COL v1, v0, i1
ENDFOR
EXIT
