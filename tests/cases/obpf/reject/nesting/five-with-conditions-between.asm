# An IF between the loops makes no difference.
# expect: E8-VERIFY:nesting pc=7 line=12
.name five_with_conditions_between
.hook on_forward
ICONST i15, 2
FOR i0, i15
  IF i15
    FOR i1, i15
      FOR i2, i15
        IF i15
          FOR i3, i15
            FOR i4, i15
            ENDFOR
          ENDFOR
        ENDIF
      ENDFOR
    ENDFOR
  ENDIF
ENDFOR
EXIT
