# Four loops and 29 conditions.
# expect: E8-VERIFY:nesting pc=33 line=38
.name conditions_and_loops
.hook on_forward
ICONST i15, 1
FOR i0, i15
  FOR i1, i15
    FOR i2, i15
      FOR i3, i15
        IF i15
          IF i15
            IF i15
              IF i15
                IF i15
                  IF i15
                    IF i15
                      IF i15
                        IF i15
                          IF i15
                            IF i15
                              IF i15
                                IF i15
                                  IF i15
                                    IF i15
                                      IF i15
                                        IF i15
                                          IF i15
                                            IF i15
                                              IF i15
                                                IF i15
                                                  IF i15
                                                    IF i15
                                                      IF i15
                                                        IF i15
                                                          IF i15
                                                            IF i15
                                                              IF i15
                                                                IF i15
                                                                ENDIF
                                                              ENDIF
                                                            ENDIF
                                                          ENDIF
                                                        ENDIF
                                                      ENDIF
                                                    ENDIF
                                                  ENDIF
                                                ENDIF
                                              ENDIF
                                            ENDIF
                                          ENDIF
                                        ENDIF
                                      ENDIF
                                    ENDIF
                                  ENDIF
                                ENDIF
                              ENDIF
                            ENDIF
                          ENDIF
                        ENDIF
                      ENDIF
                    ENDIF
                  ENDIF
                ENDIF
              ENDIF
            ENDIF
          ENDIF
        ENDIF
      ENDFOR
    ENDFOR
  ENDFOR
ENDFOR
EXIT
