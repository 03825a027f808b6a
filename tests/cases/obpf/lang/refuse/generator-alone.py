# error 10:9 a generator stands only inside sum, mean, min or max
hook("on_forward:student/*")
m = map.array(8)
h = map.log2()
ring = map.ring()
named = map.array(fields=("sum", "count"))


def probe(x):
    s = (1 for r in x)
