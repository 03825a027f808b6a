# error 3:1 map m: 2 field names for 3 cells
hook("on_kd_step")
m = map.array(3, fields=("a", "b"))
def probe():
    pass
