# error 3:1 map m: a linear histogram needs low < high, got 1 and 0
hook("on_kd_step")
m = map.linear(1, 0, 10)
def probe():
    pass
