# error 10:24 a generator has one plain variable
hook("on_forward:student/*")
m = map.array(8)
h = map.log2()
ring = map.ring()
named = map.array(fields=("sum", "count"))


def probe(x):
    m[0] = sum(1.0 for a, b in x)
