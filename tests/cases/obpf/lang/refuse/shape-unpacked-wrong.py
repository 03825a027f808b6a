# error 10:5 the shape of a view of rank 2 has 2 sizes
hook("on_forward:student/*")
m = map.array(8)
h = map.log2()
ring = map.ring()
named = map.array(fields=("sum", "count"))


def probe(x):
    a, b, c = x.shape
