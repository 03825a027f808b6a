# error 10:5 h is a log2 map: it has no cells to index
hook("on_forward:student/*")
m = map.array(8)
h = map.log2()
ring = map.ring()
named = map.array(fields=("sum", "count"))


def probe(x):
    h[0] = 1
