# error 10:5 h is a log2 map and has no .emit
hook("on_forward:student/*")
m = map.array(8)
h = map.log2()
ring = map.ring()
named = map.array(fields=("sum", "count"))


def probe(x):
    h.emit(0, 1.0)
