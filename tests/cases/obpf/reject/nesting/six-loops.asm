# Six loops.
# expect: E8-VERIFY:nesting pc=5 line=10
.name six_loops
.hook on_forward
ICONST i15, 2
FOR i0, i15
  FOR i1, i15
    FOR i2, i15
      FOR i3, i15
        FOR i4, i15
          FOR i5, i15
          ENDFOR
        ENDFOR
      ENDFOR
    ENDFOR
  ENDFOR
ENDFOR
EXIT
