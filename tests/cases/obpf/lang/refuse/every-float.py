# error 2:26 every = 2.5; it must be a whole number from 1 to 1000000
hook("on_kd_step", every=2.5)
def probe():
    pass
