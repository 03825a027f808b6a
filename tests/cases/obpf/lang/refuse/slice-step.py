# error 10:22 a slice has no step
hook("on_forward:student/*")
m = map.array(8)
h = map.log2()
ring = map.ring()
named = map.array(fields=("sum", "count"))


def probe(x):
    m[0] = sum(x[0:4:2])
