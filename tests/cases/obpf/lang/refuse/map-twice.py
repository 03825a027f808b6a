# error 4:1 m is already a map
hook("on_kd_step")
m = map.array(3)
m = map.array(3)
def probe():
    pass
