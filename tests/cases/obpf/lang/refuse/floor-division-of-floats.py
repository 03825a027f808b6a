# error 10:12 // takes whole numbers, this is a float
hook("on_forward:student/*")
m = map.array(8)
h = map.log2()
ring = map.ring()
named = map.array(fields=("sum", "count"))


def probe(x):
    m[0] = 1.5 // 2
