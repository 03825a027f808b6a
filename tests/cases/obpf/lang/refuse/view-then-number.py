# error 11:5 r is a view of rank 1 elsewhere and a float here
hook("on_forward:student/*")
m = map.array(8)
h = map.log2()
ring = map.ring()
named = map.array(fields=("sum", "count"))


def probe(x):
    r = x[0]
    r = 1.0
