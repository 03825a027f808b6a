# error 10:12 cosine takes 2 arguments, got 1
hook("on_forward:student/*")
m = map.array(8)
h = map.log2()
ring = map.ring()
named = map.array(fields=("sum", "count"))


def probe(x):
    m[0] = cosine(x[0])
