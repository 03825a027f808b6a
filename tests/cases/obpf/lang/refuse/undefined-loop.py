# error 12:12 s may have no value here: line 11 does not always run before
hook("on_forward:student/*")
m = map.array(8)
h = map.log2()
ring = map.ring()
named = map.array(fields=("sum", "count"))


def probe(x):
    for i in range(3):
        s = 1.0
    m[0] = s
