# A long chain of elif.
.name long_chain
.hook on_forward
.map m array 12
CTXI i0, site
ICONST i1, 0
IEQ i2, i0, i1
IF i2
  MINC i1, @m
ELSE
  ICONST i1, 1
  IEQ i2, i0, i1
  IF i2
    MINC i1, @m
  ELSE
    ICONST i1, 2
    IEQ i2, i0, i1
    IF i2
      MINC i1, @m
    ELSE
      ICONST i1, 3
      IEQ i2, i0, i1
      IF i2
        MINC i1, @m
      ELSE
        ICONST i1, 4
        IEQ i2, i0, i1
        IF i2
          MINC i1, @m
        ELSE
          ICONST i1, 5
          IEQ i2, i0, i1
          IF i2
            MINC i1, @m
          ELSE
            ICONST i1, 6
            IEQ i2, i0, i1
            IF i2
              MINC i1, @m
            ELSE
              ICONST i1, 7
              IEQ i2, i0, i1
              IF i2
                MINC i1, @m
              ELSE
                ICONST i1, 8
                IEQ i2, i0, i1
                IF i2
                  MINC i1, @m
                ELSE
                  ICONST i1, 9
                  IEQ i2, i0, i1
                  IF i2
                    MINC i1, @m
                  ELSE
                    ICONST i1, 10
                    IEQ i2, i0, i1
                    IF i2
                      MINC i1, @m
                    ELSE
                      ICONST i1, 11
                      IEQ i2, i0, i1
                      IF i2
                        MINC i1, @m
                      ELSE
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
