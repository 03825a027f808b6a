# error 2:26 every = 0; it must be a whole number from 1 to 1000000
hook("on_kd_step", every=0)
def probe():
    pass
