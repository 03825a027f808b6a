# error 3:1 map 'Map_' of kind 'array': names are a-z, 0-9 and _; kinds are array,
hook("on_kd_step")
Map_ = map.array(3)
def probe():
    pass
