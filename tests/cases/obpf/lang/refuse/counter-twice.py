# error 11:13 i already counts the loop of line 10
hook("on_forward:student/*")
m = map.array(8)
h = map.log2()
ring = map.ring()
named = map.array(fields=("sum", "count"))


def probe(x):
    for i in range(3):
        for i in range(3):
            pass
