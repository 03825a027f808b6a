# 33 conditions within each other.
# expect: E8-VERIFY:nesting pc=33 line=38
.name thirty_three_conditions
.hook on_forward
ICONST i0, 1
IF i0
  IF i0
    IF i0
      IF i0
        IF i0
          IF i0
            IF i0
              IF i0
                IF i0
                  IF i0
                    IF i0
                      IF i0
                        IF i0
                          IF i0
                            IF i0
                              IF i0
                                IF i0
                                  IF i0
                                    IF i0
                                      IF i0
                                        IF i0
                                          IF i0
                                            IF i0
                                              IF i0
                                                IF i0
                                                  IF i0
                                                    IF i0
                                                      IF i0
                                                        IF i0
                                                          IF i0
                                                            IF i0
                                                              IF i0
                                                                IF i0
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
      ENDIF
    ENDIF
  ENDIF
ENDIF
EXIT
