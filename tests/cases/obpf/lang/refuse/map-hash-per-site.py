# error 3:26 map.hash takes no per_site here
hook("on_kd_step")
m = map.hash(8, per_site=True)
def probe():
    pass
