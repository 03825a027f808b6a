# error 11:12 rmx is a variable here
hook("on_forward:student/*")
m = map.array(8)
h = map.log2()
ring = map.ring()
named = map.array(fields=("sum", "count"))


def probe(x):
    rmx = 1
    m[0] = rmx(x)
