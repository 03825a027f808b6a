# error 10:12 dot takes views of one shape, got a view of rank 2 and a view of rank 
hook("on_forward:student/*")
m = map.array(8)
h = map.log2()
ring = map.ring()
named = map.array(fields=("sum", "count"))


def probe(x):
    m[0] = dot(x, x[0])
