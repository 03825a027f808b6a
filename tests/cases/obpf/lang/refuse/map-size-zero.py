# error 3:15 size = 0; it must be a whole number from 1 to 262144
hook("on_kd_step")
m = map.array(0)
def probe():
    pass
