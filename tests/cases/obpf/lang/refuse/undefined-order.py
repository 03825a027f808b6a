# error 10:12 s may have no value here: line 11 does not always run before
hook("on_forward:student/*")
m = map.array(8)
h = map.log2()
ring = map.ring()
named = map.array(fields=("sum", "count"))


def probe(x):
    m[0] = s
    s = 1.0
