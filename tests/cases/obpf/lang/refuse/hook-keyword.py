# error 2:25 hook() has no rate
hook("on_kd_step", rate=2)
def probe():
    pass
