# As many rounds as a loop may have, of too many units each.
# expect: E8-VERIFY:cost pc=2 line=7
.name sixteen_million_rounds
.hook on_forward
ICONST i0, 16777216
FCONST f0, 1.0
FOR i1, i0
  FEXP f0, f0
  FEXP f0, f0
  FEXP f0, f0
  FEXP f0, f0
  FEXP f0, f0
  FEXP f0, f0
  FEXP f0, f0
  FEXP f0, f0
  FEXP f0, f0
  FEXP f0, f0
  FEXP f0, f0
  FEXP f0, f0
  FEXP f0, f0
  FEXP f0, f0
  FEXP f0, f0
  FEXP f0, f0
  FEXP f0, f0
  FEXP f0, f0
  FEXP f0, f0
  FEXP f0, f0
  FEXP f0, f0
  FEXP f0, f0
  FEXP f0, f0
  FEXP f0, f0
ENDFOR
EXIT
