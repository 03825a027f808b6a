# error 3:5 this has to be a number written out
hook("on_kd_step")
K = 1 + step
def probe():
    pass
