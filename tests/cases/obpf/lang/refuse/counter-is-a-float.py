# error 11:9 i is a float elsewhere; a counter is a whole number
hook("on_forward:student/*")
m = map.array(8)
h = map.log2()
ring = map.ring()
named = map.array(fields=("sum", "count"))


def probe(x):
    i = 0.5
    for i in range(3):
        pass
