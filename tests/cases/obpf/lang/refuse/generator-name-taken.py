# error 10:24 step is already a value of the firing
hook("on_forward:student/*")
m = map.array(8)
h = map.log2()
ring = map.ring()
named = map.array(fields=("sum", "count"))


def probe(x):
    m[0] = sum(1.0 for step in x)
