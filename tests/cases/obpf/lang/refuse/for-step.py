# error 10:14 range takes one or two whole numbers; it has no step
hook("on_forward:student/*")
m = map.array(8)
h = map.log2()
ring = map.ring()
named = map.array(fields=("sum", "count"))


def probe(x):
    for i in range(0, 9, 2):
        pass
