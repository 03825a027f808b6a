# error 3:15 size = 10000000; it must be a whole number from 1 to 262144
hook("on_kd_step")
m = map.array(10000000)
def probe():
    pass
