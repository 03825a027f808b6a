# error 5:1 a file has one function, probe
hook("on_kd_step")
def probe():
    pass
def probe2():
    pass
