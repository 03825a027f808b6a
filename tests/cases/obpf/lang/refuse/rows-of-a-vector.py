# error 10:17 mean has nothing to walk over: sumsq gives one number here
hook("on_forward:student/*")
m = map.array(8)
h = map.log2()
ring = map.ring()
named = map.array(fields=("sum", "count"))


def probe(x):
    m[0] = mean(sumsq(x[0]))
