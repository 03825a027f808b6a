# A condition that is a float.
# expect: E8-SYNTAX line=7
.name float_condition
.hook on_forward
.map m array 4
FCONST f0, 1.0
IF f0
ENDIF
EXIT
