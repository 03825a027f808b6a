# error 12:12 i counts the loop of line 10 and has no value after it
hook("on_forward:student/*")
m = map.array(8)
h = map.log2()
ring = map.ring()
named = map.array(fields=("sum", "count"))


def probe(x):
    for i in range(3):
        pass
    m[0] = i
