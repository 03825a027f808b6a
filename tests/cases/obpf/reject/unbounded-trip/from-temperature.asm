# As many rounds as the temperature.
# expect: E8-VERIFY:trips pc=2 line=7
.name from_temperature
.hook on_kd_step
CTXF f0, temperature
F2I i0, f0
FOR i1, i0
ENDFOR
EXIT
