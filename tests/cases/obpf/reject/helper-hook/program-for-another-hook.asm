# A program of on_forward at an on_grad hook.
# expect: E8-VERIFY:hook pc=0 line=6
# attach: on_grad
.name program_for_another_hook
.hook on_forward
VARG v0, x
EXIT
