# error 3:12 '1.5' is no whole number from -9223372036854775808 to 9223372036854775
.hook on_kd_step
ICONST i0, 1.5
