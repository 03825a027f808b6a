# error 10:16 lse takes a vector, this is a view of rank 2
hook("on_forward:student/*")
m = map.array(8)
h = map.log2()
ring = map.ring()
named = map.array(fields=("sum", "count"))


def probe(x):
    m[0] = lse(x)
