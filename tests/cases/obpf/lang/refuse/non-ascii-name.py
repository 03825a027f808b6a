# error 10:5 the name 'größe' is not plain ASCII
hook("on_forward:student/*")
m = map.array(8)
h = map.log2()
ring = map.ring()
named = map.array(fields=("sum", "count"))


def probe(x):
    größe = 1
