# error 10:5 .emit takes 2 arguments
hook("on_forward:student/*")
m = map.array(8)
h = map.log2()
ring = map.ring()
named = map.array(fields=("sum", "count"))


def probe(x):
    ring.emit(1.0)
