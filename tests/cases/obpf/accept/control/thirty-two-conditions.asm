# 32 conditions within each other.
.name thirty_two_conditions
.hook on_forward
CTXI i0, step
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
EXIT
