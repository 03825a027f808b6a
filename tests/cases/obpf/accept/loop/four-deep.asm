# Four loops within each other.
.name four_deep
.hook on_forward
ICONST i15, 2
FOR i0, i15
  FOR i1, i15
    FOR i2, i15
      FOR i3, i15
      ENDFOR
    ENDFOR
  ENDFOR
ENDFOR
EXIT
