# error 10:5 x is a view of the step and can only be read
hook("on_forward:student/*")
m = map.array(8)
h = map.log2()
ring = map.ring()
named = map.array(fields=("sum", "count"))


def probe(x):
    x[0] += 1.0
