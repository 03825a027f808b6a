# error 3:5 no map.queue
hook("on_kd_step")
m = map.queue(8)
def probe():
    pass
