# error 10:7 a map has one key, a whole number
hook("on_forward:student/*")
m = map.array(8)
h = map.log2()
ring = map.ring()
named = map.array(fields=("sum", "count"))


def probe(x):
    m[0, 1] = 1
