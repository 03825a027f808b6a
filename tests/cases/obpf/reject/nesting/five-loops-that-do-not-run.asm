# Five loops of no round.
# expect: E8-VERIFY:nesting pc=5 line=10
.name five_loops_that_do_not_run
.hook on_forward
ICONST i15, 0
FOR i0, i15
  FOR i1, i15
    FOR i2, i15
      FOR i3, i15
        FOR i4, i15
        ENDFOR
      ENDFOR
    ENDFOR
  ENDFOR
ENDFOR
EXIT
