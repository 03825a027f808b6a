# error 10:15 the tag must be a whole number, this is a float
hook("on_forward:student/*")
m = map.array(8)
h = map.log2()
ring = map.ring()
named = map.array(fields=("sum", "count"))


def probe(x):
    ring.emit(0.5, 1.0)
