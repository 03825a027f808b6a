# The same along the rows.
# expect: E8-VERIFY:bounds pc=3 line=8
.name row_to_contract_maximum
.hook on_forward
VARG v0, x
ICONST i0, 4096
FOR i1, i0
  ROW v1, v0, i1
ENDFOR
EXIT
