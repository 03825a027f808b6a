# error 2:6 no hook named 'on_backward'; hooks: on_forward, on_grad, on_kd_step, o
hook("on_backward:*")
def probe():
    pass
