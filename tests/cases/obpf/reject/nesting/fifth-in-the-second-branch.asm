# The fifth loop is in an ELSE.
# expect: E8-VERIFY:nesting pc=7 line=12
.name fifth_in_the_second_branch
.hook on_forward
ICONST i15, 2
FOR i0, i15
  FOR i1, i15
    FOR i2, i15
      FOR i3, i15
        IF i15
        ELSE
          FOR i4, i15
          ENDFOR
        ENDIF
      ENDFOR
    ENDFOR
  ENDFOR
ENDFOR
EXIT
