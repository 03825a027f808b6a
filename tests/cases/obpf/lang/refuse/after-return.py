# error 11:5 this line never runs: the block was left before it
hook("on_forward:student/*")
m = map.array(8)
h = map.log2()
ring = map.ring()
named = map.array(fields=("sum", "count"))


def probe(x):
    return
    m[0] = 1
