# error 12:11 the key of a map must be a whole number, this is a float: k is a float
hook("on_forward:student/*")
m = map.array(8)
h = map.log2()
ring = map.ring()
named = map.array(fields=("sum", "count"))


def probe(x):
    k = 0
    for i in range(3):
        m[k] += 1
        k += 0.5
