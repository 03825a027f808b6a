# error 3:5 map.array needs size
hook("on_kd_step")
m = map.array()
def probe():
    pass
