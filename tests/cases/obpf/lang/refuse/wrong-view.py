# error 3:11 on_kd_step has no view 'x'
hook("on_kd_step")
def probe(x):
    pass
