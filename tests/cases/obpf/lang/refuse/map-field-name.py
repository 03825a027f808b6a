# error 3:1 map 'm' of kind 'array': names are a-z, 0-9 and _; kinds are array, ha
hook("on_kd_step")
m = map.array(fields=("A b",))
def probe():
    pass
