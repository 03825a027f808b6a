# error 11:5 r is a view of rank 2 elsewhere and a view of rank 1 here
hook("on_forward:student/*")
m = map.array(8)
h = map.log2()
ring = map.ring()
named = map.array(fields=("sum", "count"))


def probe(x):
    r = x
    r = x[0]
